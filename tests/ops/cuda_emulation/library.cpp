// The operators of rdsnet with the CUDA kernels, emulated, in place of those for the CPU.
#include "schemas.h"

#include "cuda/loss_registration.cpp"
#include "cuda/registration.cpp"

TORCH_LIBRARY(rdsnet, m) {
  rdsnet::define_operators(m);
}
