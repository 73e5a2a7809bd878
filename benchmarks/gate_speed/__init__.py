"""Wall-clock speed-up of every gate over dense training, beside what arithmetic and this machine allow."""
