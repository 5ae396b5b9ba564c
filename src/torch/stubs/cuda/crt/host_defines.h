// A stand-in; host_config.h says for what. To the host's compiler the marks of device code mean nothing.
#pragma once

#define __constant__
#define __device__
#define __global__
#define __host__
#define __managed__
#define __shared__

#define __cudart_builtin__
#define __device_builtin__
#define __device_builtin_surface_type__
#define __device_builtin_texture_type__

#define CUDARTAPI
#define CUDARTAPI_CDECL

#define __align__(bytes) __attribute__((aligned(bytes)))
#define __builtin_align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ __inline__ __attribute__((always_inline))
