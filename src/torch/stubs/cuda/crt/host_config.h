// CUDA's headers as pip installs them lack the folders `crt` and `nv`, which come with NVIDIA's own compiler. c10d.cpp passes the
// headers to the host's compiler, to which the three files of this folder say the little that it needs. This one: nothing.
#pragma once
