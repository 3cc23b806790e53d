// The corpora of the C++ fuzz targets, once each, without a fuzzer.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "fuzz/targets.h"

namespace octavo::fuzz {
namespace {

void RunCorpus(const std::string& name, void (*target)(Input)) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(OCTAVO_FUZZ_CORPUS "/" + name)) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  REQUIRE(!files.empty());
  for (const auto& file : files) {
    INFO(file.string());  // a target that aborts is reported with it
    std::ifstream in(file, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    target({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
}

TEST_CASE("the fuzz corpus of ops stays in its memory") { RunCorpus("ops", Ops); }
TEST_CASE("the fuzz corpus of engines keeps every invariant") { RunCorpus("engine", Engine); }
TEST_CASE("the fuzz corpus of lives gets the oracle's tokens") { RunCorpus("life", Life); }
TEST_CASE("the fuzz corpus of scenario files is read or refused") { RunCorpus("trace", Trace); }

}  // namespace
}  // namespace octavo::fuzz
