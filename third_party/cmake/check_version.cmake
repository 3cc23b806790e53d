# `cmake -P` on this file succeeds where cmake is new enough for the build.
cmake_minimum_required(VERSION 3.25)
