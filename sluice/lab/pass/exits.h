// Exits for networks that were trained without them; settings of exits and gates for a budget.
#pragma once
#include "sluice/lab/pass/pass.h"

namespace sluice::lab {

/// add-exits {layers=[..] | every=2, heads="shared"|"own", gate="confidence"|"entropy"|"margin",
/// threshold= | shares=[0.5,0.7,0.85], seed=0}: exits behind those of a network's layers (blocks;
/// in a chain without blocks linear layers and convolutions), through which rows leave that are
/// sure enough: a decoder becomes an EarlyExitDecoder, a vision transformer or a sequential that
/// classifies an ExitChain. Shared heads are the decoder's own norm and head; own ones are fresh
/// and with calibration inputs fitted by least squares to what the last head says, on half of them.
/// Then as calibrate-exits. Equal outputs without a choice of size. Report: layers, heads, gate,
/// fitted, residual, and that of calibrate-exits.
Json add_exits(Model& model, const PassInput& input);
/// calibrate-exits {threshold= | shares=[0.5,0.7,0.85]}: sizes for a network with exits, each a
/// list of thresholds: for every share of the dense cost the exits and the threshold with which, on
/// half of the calibration inputs, the most rows keep the dense network's first choice; and
/// "dense". Or one size "exits" with a given threshold for all. What each spends is metered on the
/// other half: cost_share, cost_rows and agreement in the table of sizes. Report: exits, sizes
/// [{name, thresholds, cost_share, agreement}], measured_on.
Json calibrate_exits(Model& model, const PassInput& input);
/// The same with options that the caller has checked; errors begin with `what`.
Json calibrate_exits(Model& model, const PassInput& input, const std::string& what);
/// calibrate-gates {shares=[0.5,0.7,0.85]}: sizes for a network with gates (threshold and ordinal
/// gates, choices with a router), each a price by which every score is lowered, times what the
/// decision costs of its gate's dearest: for every share of the dense cost the price with which
/// half of the calibration inputs spend that; "trained", the price 0; and "dense", the last, where
/// every gate is open. Table and report as of calibrate-exits, with prices.
Json calibrate_gates(Model& model, const PassInput& input);

}  // namespace sluice::lab
