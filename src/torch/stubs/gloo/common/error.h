// A stand-in without declarations; algorithm.h says for what.
#pragma once
