// libtorch has gloo's code inside libtorch_cpu, but not gloo's headers, and its own ProcessGroupGloo.hpp includes five of them.
// The files of this folder stand in for the five with what that header names. `GLOO_CHECKED` in build/headers.rs lists the
// releases of libtorch whose objects were found to have the size that they have with these declarations.
#pragma once
