"""The fake NVIDIA driver, for `fastast meter`."""

from tests.energy.conftest import driver as driver
