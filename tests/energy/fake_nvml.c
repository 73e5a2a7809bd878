/* A libnvidia-ml.so.1 that replays device models along a known power curve.
 *
 * FAKE_NVML describes it: devices separated by ';', each a list of key=value separated by ','. Keys:
 *   name, uuid, cc (75 for 7.5)
 *   curve    watts over time: "0:60/1.5:240/3:100", each value holds from its second on
 *   counter  1: has the energy counter            step   seconds between moves of the counter
 *   stuck    1: the counter never moves           instant 1: has the instantaneous power field
 *   usage    instant | average | none: what GetPowerUsage gives
 *   mig, vgpu                                     lost   second at which the GPU falls off the bus
 *   flaky    every n-th read of power times out
 * FAKE_NVML_LIMITS is a file without which there are no limits: every change of one is a line, "second index p watts" or
 * "second index c megahertz" (0: unlocked). A power limit caps the curve. FAKE_NVML_DENY is set where none may change.
 * FAKE_NVML_T0 is second 0 of the curves on the monotonic clock. FAKE_NVML_INIT is an error code of nvmlInit.
 */
#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, TIMEOUT = 10, LOST = 15 };
enum { MAX_DEVICES = 16, MAX_POINTS = 64 };
enum { MIN_W = 100, DEFAULT_W = 300, MAX_W = 350 };

typedef struct {
    char name[64], uuid[80], usage[16];
    int cc, counter, stuck, instant, mig, vgpu, flaky, reads, points;
    double step, lost, at[MAX_POINTS], watts[MAX_POINTS];
} Device;

typedef struct {
    uint32_t field, scope;
    int64_t timestamp, latency;
    uint32_t type, result;
    union { double d; uint32_t u; uint64_t ull; } value;
} FieldValue;

static Device devices[MAX_DEVICES];
static int count, instances[MAX_DEVICES];
static double t0;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9 - t0;
}

/* The power limit at second t, and until when it holds. */
static double limit(const Device *d, double t, double *until) {
    double watts = DEFAULT_W, second, value;
    int index;
    char kind;
    FILE *file = getenv("FAKE_NVML_LIMITS") ? fopen(getenv("FAKE_NVML_LIMITS"), "r") : NULL;
    *until = INFINITY;
    if (!file) return watts;
    while (fscanf(file, "%lf %d %c %lf", &second, &index, &kind, &value) == 4) {
        if (kind != 'p' || index != d - devices) continue;
        if (second - t0 <= t) watts = value;
        else { *until = second - t0; break; }
    }
    fclose(file);
    return watts;
}
static int change(const Device *d, char kind, double value) {
    char line[64];
    if (!getenv("FAKE_NVML_LIMITS")) return NOT_SUPPORTED;
    if (getenv("FAKE_NVML_DENY")) return NO_PERMISSION;
    int file = open(getenv("FAKE_NVML_LIMITS"), O_WRONLY | O_APPEND | O_CREAT, 0644);
    snprintf(line, sizeof line, "%.6f %d %c %g\n", now() + t0, (int)(d - devices), kind, value);
    if (write(file, line, strlen(line)) < 0) abort();
    close(file);
    return OK;
}

static double power(const Device *d, double t) {
    double w = d->watts[0], until;
    for (int i = 0; i < d->points && d->at[i] <= t; i++) w = d->watts[i];
    return fmin(w, limit(d, t, &until));
}

/* Joules from second 0 to t; the first value also holds before second 0. */
static double energy(const Device *d, double t) {
    double joules = 0;
    if (t <= 0) return d->watts[0] * t;
    for (int i = 0; i < d->points && d->at[i] < t; i++) {
        double end = i + 1 < d->points && d->at[i + 1] < t ? d->at[i + 1] : t, until;
        for (double from = d->at[i]; from < end; from = until) {
            double cap = limit(d, from, &until);
            joules += fmin(d->watts[i], cap) * (fmin(until, end) - from);
        }
    }
    return joules;
}

static void set(Device *d, const char *key, char *value) {
    if (!strcmp(key, "name")) snprintf(d->name, sizeof d->name, "%s", value);
    else if (!strcmp(key, "uuid")) snprintf(d->uuid, sizeof d->uuid, "%s", value);
    else if (!strcmp(key, "usage")) snprintf(d->usage, sizeof d->usage, "%s", value);
    else if (!strcmp(key, "cc")) d->cc = atoi(value);
    else if (!strcmp(key, "counter")) d->counter = atoi(value);
    else if (!strcmp(key, "stuck")) d->stuck = atoi(value);
    else if (!strcmp(key, "instant")) d->instant = atoi(value);
    else if (!strcmp(key, "mig")) d->mig = atoi(value);
    else if (!strcmp(key, "vgpu")) d->vgpu = atoi(value);
    else if (!strcmp(key, "flaky")) d->flaky = atoi(value);
    else if (!strcmp(key, "step")) d->step = atof(value);
    else if (!strcmp(key, "lost")) d->lost = atof(value);
    else if (!strcmp(key, "curve")) {
        char *save;
        for (char *p = strtok_r(value, "/", &save); p; p = strtok_r(NULL, "/", &save), d->points++)
            sscanf(p, "%lf:%lf", &d->at[d->points], &d->watts[d->points]);
    } else { fprintf(stderr, "fake NVML: unknown key %s\n", key); abort(); }
}

int nvmlInitWithFlags(unsigned flags) {
    const char *init = getenv("FAKE_NVML_INIT");
    (void)flags;
    if (init) return atoi(init);
    if (count) return OK;
    t0 = getenv("FAKE_NVML_T0") ? atof(getenv("FAKE_NVML_T0")) : 0;
    char *text = strdup(getenv("FAKE_NVML") ? getenv("FAKE_NVML") : ""), *outer, *inner;
    for (char *one = strtok_r(text, ";", &outer); one; one = strtok_r(NULL, ";", &outer)) {
        Device *d = &devices[count];
        memset(d, 0, sizeof *d);
        d->step = 0.1, d->lost = INFINITY, d->cc = 75, d->points = 0;
        strcpy(d->usage, "instant");
        for (char *pair = strtok_r(one, ",", &inner); pair; pair = strtok_r(NULL, ",", &inner)) {
            char *value = strchr(pair, '=');
            if (!value) abort();
            *value++ = 0;
            set(d, pair, value);
        }
        instances[count] = count;
        count++;
    }
    return OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { (void)code; return "fake error"; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { snprintf(out, n, "%s", "570.86.15"); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 12080; return OK; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **out) {
    if ((int)i >= count) return INVALID;
    if (now() >= devices[i].lost) return LOST;
    *out = &devices[i];
    return OK;
}

/* A MIG instance's handle points into `instances`, a GPU's into `devices`. */
static int is_instance(void *h) { return (int *)h >= instances && (int *)h < instances + MAX_DEVICES; }
#define ALIVE(h) Device *d = h; if (now() >= d->lost) return LOST

int nvmlDeviceGetUUID(void *h, char *out, unsigned n) {
    if (is_instance(h)) snprintf(out, n, "MIG-%s", devices[*(int *)h].uuid + strlen("GPU-"));
    else snprintf(out, n, "%s", ((Device *)h)->uuid);
    return OK;
}
int nvmlDeviceGetName(void *h, char *out, unsigned n) { snprintf(out, n, "%s", ((Device *)h)->name); return OK; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) {
    ALIVE(h); *major = d->cc / 10; *minor = d->cc % 10; return OK;
}
int nvmlDeviceGetMigMode(void *h, unsigned *current, unsigned *pending) {
    ALIVE(h);
    if (d->cc < 80) return NOT_SUPPORTED;
    *current = *pending = d->mig;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *out) { ALIVE(h); *out = d->mig ? 7 : 0; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned i, void **out) {
    ALIVE(h);
    if (!d->mig || i > 0) return NOT_FOUND;
    *out = &instances[d - devices];
    return OK;
}
int nvmlDeviceGetVirtualizationMode(void *h, unsigned *out) { ALIVE(h); *out = d->vgpu ? 2 : 0; return OK; }
int nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *out) { ALIVE(h); (void)sensor; *out = 55; return OK; }
int nvmlDeviceGetClockInfo(void *h, unsigned type, unsigned *out) { ALIVE(h); (void)type; *out = 1410; return OK; }
int nvmlDeviceGetPerformanceState(void *h, unsigned *out) { ALIVE(h); *out = 0; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *out) { ALIVE(h); *out = 4; return OK; }

int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *out) {
    ALIVE(h);
    if (!d->counter) return NOT_SUPPORTED;
    /* An offset, as the counter runs since the driver was loaded. */
    double t = d->stuck ? 0 : floor(now() / d->step) * d->step;
    *out = (unsigned long long)((energy(d, t) + 5e6) * 1e3);
    return OK;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) {
    ALIVE(h);
    double t = now();
    if (!strcmp(d->usage, "none")) return NOT_SUPPORTED;
    if (d->flaky && ++d->reads % d->flaky == 0) return TIMEOUT;
    *out = 1e3 * (strcmp(d->usage, "average") ? power(d, t) : energy(d, t) - energy(d, t - 1));
    return OK;
}
int nvmlDeviceGetFieldValues(void *h, int n, FieldValue *values) {
    ALIVE(h);
    for (int i = 0; i < n; i++) {
        values[i].result = values[i].field == 186 && d->instant ? OK : NOT_SUPPORTED;
        values[i].value.u = 1e3 * power(d, now());
    }
    return OK;
}

/* Without limits the calls are missing, as on most laptops. */
int nvmlDeviceGetPowerManagementLimit(void *h, unsigned *out) {
    ALIVE(h);
    double until;
    if (!getenv("FAKE_NVML_LIMITS")) return NOT_SUPPORTED;
    *out = 1e3 * limit(d, now(), &until);
    return OK;
}
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *low, unsigned *high) {
    ALIVE(h); *low = 1e3 * MIN_W; *high = 1e3 * MAX_W; return OK;
}
int nvmlDeviceSetPowerManagementLimit(void *h, unsigned milliwatts) {
    ALIVE(h);
    return milliwatts < 1e3 * MIN_W || milliwatts > 1e3 * MAX_W ? INVALID : change(d, 'p', milliwatts / 1e3);
}
int nvmlDeviceSetGpuLockedClocks(void *h, unsigned low, unsigned high) { ALIVE(h); (void)low; return change(d, 'c', high); }
int nvmlDeviceResetGpuLockedClocks(void *h) { ALIVE(h); return change(d, 'c', 0); }

/* Asked by others that read this library (benchmarks/zeus_check.py). */
int nvmlDeviceGetArchitecture(void *h, unsigned *out) {
    ALIVE(h);
    *out = d->cc < 60 ? 3 : d->cc < 70 ? 4 : d->cc < 75 ? 5 : d->cc < 80 ? 6 : d->cc < 89 ? 7 : d->cc < 90 ? 8 : 9;
    return OK;
}
int nvmlDeviceGetC2cModeInfoV(void *h, void *out) { ALIVE(h); (void)out; return NOT_SUPPORTED; }
