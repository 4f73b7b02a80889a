// Quality against cost: what `sluice eval --budget-curve` adds to a table of models.
#pragma once
#include <string>
#include <vector>

#include "sluice/base/json_fwd.h"
#include "sluice/engine/graph/network.h"

namespace CLI {
class App;
}

namespace sluice::cli {

struct CurveOptions {
  bool wanted = false;
  std::string picture;  ///< .svg or .html
  std::string save;     ///< a copy of the bundle with what was measured in its table of sizes
};
void add_curve_options(CLI::App& app, CurveOptions& options);

/// What a row of the table is about: a model, or one of its sizes.
struct Subject {
  std::string model;
  engine::Network network;
  int64_t size = -1;  ///< as RunOptions::size
  std::string name;   ///< of the size
};
/// The models, or with a curve every size of each. Throws Error{usage} for a model of one size,
/// naming the passes that make several, and for --save with several models.
std::vector<Subject> subjects_of(const std::vector<std::string>& models,
                                 const CurveOptions& options);
/// What the first column says.
std::string label_of(const std::vector<Subject>& subjects, size_t index);

/// By subject: of what the model's most expensive size cost, `costs` being metered. Empty without
/// sizes.
std::vector<double> shares_of(const std::vector<Subject>& subjects,
                              const std::vector<double>& costs);

/// Each token decides what it costs: exits or gates.
bool tokens_decide(const engine::Network& network);
/// The beginning of a text, as a network's tokens; more of them where tokens decide.
std::vector<float> first_ids(const engine::Network& network, const std::string& text);
/// MACs of a token when they come one at a time, as a decoder writes: of several at once, what any
/// of them asks for is computed for all.
double decode_macs(const Subject& subject, const std::vector<float>& ids, int threads);

/// The metrics that a curve is drawn of and a table of sizes keeps: keys of the rows.
struct CurveKeys {
  std::string quality;            ///< drawn
  std::vector<std::string> kept;  ///< into the table of sizes
  std::string seconds;            ///< of one sample
  std::string unit;               ///< "text"
  int64_t measured = 0;           ///< how many of them the shares are the mean of
};
/// Adds "size" and "share" to the rows, draws the picture and writes the copy, as far as wanted.
/// Nothing without a curve.
void finish_curve(const CurveOptions& options, const std::vector<Subject>& subjects,
                  const std::vector<double>& shares, const CurveKeys& keys, Json& rows);

}  // namespace sluice::cli
