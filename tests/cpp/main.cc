// The entry point of octavo_tests; doctest brings the command line (--help lists it).
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include "doctest/doctest.h"
