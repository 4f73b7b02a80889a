#include "sluice/engine/text/generator.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>

#include "sluice/base/error.h"
#include "sluice/base/random.h"
#include "sluice/bundle/sizes.h"
#include "sluice/engine/text/speculative.h"
#include "sluice/engine/text/stop_strings.h"
#include "sluice/engine/text/text_model.h"

namespace sluice::engine {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kTokensBefore = 8;  // of the prompt, for the decoder of the text
constexpr int64_t kMostDrafted = 64;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

std::string_view finish_name(Finish finish) {
  switch (finish) {
    case Finish::stop_token:
      return "stop-token";
    case Finish::stop_string:
      return "stop-string";
    case Finish::max_tokens:
      return "max-tokens";
    case Finish::context:
      return "context";
    case Finish::cancelled:
      return "cancelled";
  }
  return "";
}

struct Generator::State {
  /// A request on its way.
  struct Place {
    size_t request;
    Sampler sampler;
    StopStrings stop;
    std::optional<text::DecodeStream> stream;
    std::vector<int32_t> tokens;  ///< prompt and generated
    int64_t prompt_tokens = 0;
    int64_t computed = 0;  ///< of tokens
    std::vector<int32_t> stop_tokens;
    Sampler draft_sampler;  ///< draws of its own
    DraftLength length;
  };

  Network network;
  std::optional<text::Tokenizer> tokenizer;
  Budget budget;
  Session session;
  int64_t vocabulary, block, logits_width, size, prompt_size, draft_tokens;
  bool adapt;
  double draft_cost = 1;  ///< of a proposal, in runs of the network
  std::optional<Drafter> drafter;
  std::vector<Proposal> proposals;  ///< by place
  std::vector<double> target, residual;
  std::vector<std::optional<Place>> places;
  std::vector<float> input, logits;
  std::vector<int64_t> rows, wanted, run_rows, run_wanted;
  std::vector<size_t> first_row;  ///< by place, of those in `logits`
  GenerationStatistics statistics;
  Meter meter;

  State(const Network& n, const text::Tokenizer* t, const Options& options)
      : network(n),
        budget(options.budget),
        session(open(n, options)),
        vocabulary(vocabulary_of(n)),
        block(n.input_shape()[0]),
        logits_width(n.output_shape()[1]),
        size(options.size),
        prompt_size(options.prompt_size.value_or(options.size)),
        draft_tokens(options.draft ? options.draft_tokens : 0),
        adapt(options.adapt) {
    if (t) tokenizer = *t;
    if (session.state_bytes() == 0) {
      fail(Code::unsupported,
           "{}: the network keeps nothing from run to run; export it with a cache to generate",
           n.bundle().path());
    }
    if (logits_width > vocabulary) {
      fail(Code::shape, "{}: {} logits, but the embedding has {} rows", n.bundle().path(),
           logits_width, vocabulary);
    }
    places.resize(static_cast<size_t>(options.batch));
    rows.resize(places.size());
    wanted.resize(places.size());
    first_row.resize(places.size());
    proposals.resize(places.size());
    logits.resize(static_cast<size_t>(options.batch * (draft_tokens + 1) * logits_width));
    if (options.draft) open_draft(*options.draft, options);
  }

  void open_draft(const Network& draft, const Options& options) {
    if (session.rewind_limit() <= draft_tokens)
      fail(Code::unsupported,
           "{}: its sequences cannot go back behind a refused token (linear attention and carried "
           "values cannot); run it without a draft",
           network.bundle().path());
    const Shape &in = draft.input_shape(), &out = draft.output_shape();
    if (in.size() != 1 || out.size() != 2 || out[0] != in[0] || out[1] != logits_width)
      fail(Code::shape, "{}: expected ids [T] in and logits [T,{}] out, as of {}; found {} and {}",
           draft.bundle().path(), logits_width, network.bundle().path(), to_string(in),
           to_string(out));
    const bool same = &draft.bundle() == &network.bundle();
    drafter.emplace(draft, Drafter::Options{.batch = options.batch,
                                            .threads = options.threads,
                                            .size = options.draft_size,
                                            .shared = same ? &session : nullptr});
    if (same) {
      const bundle::Bundle& model = network.bundle();
      const auto macs = bundle::graph_sizes(model.graph(), model.info(), model.path()).macs;
      const auto of = [&](int64_t chosen) {
        return static_cast<double>(chosen < 0 ? macs.back() : macs[static_cast<size_t>(chosen)]);
      };
      if (!macs.empty()) draft_cost = of(options.draft_size) / std::max(1.0, of(size));
    } else {
      // Decoding is reading weights.
      draft_cost = static_cast<double>(draft.cost().weight_bytes) /
                   static_cast<double>(std::max<int64_t>(1, network.cost().weight_bytes));
    }
  }

  static Session open(const Network& n, const Options& options) {
    const Shape& out = n.output_shape();
    if (n.input_shape().size() != 1 || out.size() != 2 || out[0] != n.input_shape()[0]) {
      fail(Code::unsupported,
           "{}: expected a decoder, ids [T] in and logits [T,V] out, found {} and {}",
           n.bundle().path(), to_string(n.input_shape()), to_string(out));
    }
    const int64_t drafted = options.draft ? options.draft_tokens : 0;
    if (options.draft && (drafted < 1 || drafted > kMostDrafted || drafted >= out[0]))
      fail(Code::usage, "{} tokens to propose at a time; expected 1 to {}", drafted,
           std::min(kMostDrafted, out[0] - 1));
    return Session(n, {.batch = options.batch,
                       .threads = options.threads,
                       .sequences = true,
                       .last_rows = drafted + 1});
  }

  void check(const GenerationRequest& r, size_t index, size_t count) const {
    const std::string which = count > 1 ? fmt::format("prompt {}", index + 1) : "the prompt";
    const int64_t length = std::ssize(r.prompt);
    if (length == 0) fail(Code::usage, "{} is empty; give at least one token", which);
    if (length > session.capacity()) {
      fail(Code::limit,
           "{} has {} tokens; the context of {} is {}. Shorten it, or import the model with a "
           "larger --context",
           which, length, network.bundle().path(), session.capacity());
    }
    for (const int32_t id : r.prompt) {
      if (id < 0 || id >= vocabulary) {
        fail(Code::shape, "{}: token {}; {} takes 0 to {}", which, id, network.bundle().path(),
             vocabulary - 1);
      }
    }
    if (r.max_tokens < 1)
      fail(Code::usage, "{}: at most {} tokens; expected 1 or more", which, r.max_tokens);
    if (!r.stop.empty() && !tokenizer)
      fail(Code::usage, "{}: stop strings need a tokenizer", which);
    check_sampling(r.sampling);
    StopStrings{r.stop};
  }

  void start(size_t place, const GenerationRequest& r, size_t index) {
    session.reset(static_cast<int64_t>(place));
    if (drafter) drafter->keep(static_cast<int64_t>(place), 0);
    Sampling drafting = r.sampling;
    drafting.seed = derive_seed(r.sampling.seed, "draft", 0);
    Place p{index,
            Sampler(r.sampling),
            StopStrings(r.stop),
            std::nullopt,
            r.prompt,
            std::ssize(r.prompt),
            0,
            r.stop_tokens,
            Sampler(drafting),
            DraftLength(draft_tokens, draft_cost)};
    for (const int64_t id : network.bundle().task().stop_tokens)
      p.stop_tokens.push_back(static_cast<int32_t>(id));
    if (tokenizer) {
      p.stream = tokenizer->stream();
      // The text goes on where the prompt ends: a space before the first word stays.
      const size_t from = r.prompt.size() - std::min(r.prompt.size(), kTokensBefore);
      for (size_t i = from; i < r.prompt.size(); ++i) p.stream->push(r.prompt[i]);
    }
    places[place] = std::move(p);
  }

  static bool greedy(const GenerationRequest& r) { return r.sampling.temperature == 0; }

  /// Tokens of the draft for every sequence that is behind its prompt.
  void propose(std::span<const GenerationRequest> requests) {
    std::vector<Drafter::Wish> wishes(places.size());
    for (size_t s = 0; s < places.size(); ++s) {
      if (!places[s]) continue;
      Place& p = *places[s];
      const int64_t length = std::ssize(p.tokens), generated = length - p.prompt_tokens;
      // What prompts run with is not what proposals are checked with.
      if (length - p.computed != 1 || (prompt_size != size && in_prompt(p))) continue;
      // The last of a run is chosen without a proposal.
      const int64_t room = std::min(session.capacity() - length, drafter->capacity() - length),
                    wanted_most = requests[p.request].max_tokens - generated - 1;
      const int64_t most = adapt ? p.length.next() : draft_tokens;
      wishes[s] = {p.tokens, std::clamp<int64_t>(std::min(room, wanted_most), 0, most),
                   &p.draft_sampler, greedy(requests[p.request])};
    }
    drafter->propose(wishes, proposals);
    for (const Proposal& proposal : proposals) statistics.proposed += std::ssize(proposal.tokens);
  }

  bool in_prompt(const Place& p) const { return p.computed < p.prompt_tokens; }

  /// The next block of each prompt; the next token of the others, with what was proposed behind it.
  /// One run of the network, or two where prompts have a size of their own.
  void compute() {
    for (size_t s = 0; s < places.size(); ++s) {
      rows[s] = wanted[s] = 0;
      if (!places[s]) continue;
      const Place& p = *places[s];
      const int64_t left = std::ssize(p.tokens) - p.computed;
      rows[s] = std::min(left, block);
      wanted[s] = rows[s] == left ? 1 : 0;
      const int64_t proposed = std::ssize(proposals[s].tokens);
      rows[s] += proposed;
      wanted[s] += proposed;
    }
    size_t done = 0;
    if (prompt_size == size) {
      run_places([](const Place&) { return true; }, size, done);
    } else {
      run_places([&](const Place& p) { return in_prompt(p); }, prompt_size, done);
      run_places([&](const Place& p) { return !in_prompt(p); }, size, done);
    }
  }

  /// Computes the places that `runs` names; their rows go behind the `done` first of `logits`.
  template <class Runs>
  void run_places(const Runs& runs, int64_t at_size, size_t& done) {
    input.clear();
    run_rows.assign(places.size(), 0);
    run_wanted.assign(places.size(), 0);
    int64_t prompt = 0, decoded = 0;
    const size_t before = done;
    for (size_t s = 0; s < places.size(); ++s) {
      if (!places[s] || !runs(*places[s])) continue;
      const Place& p = *places[s];
      const std::vector<int32_t>& proposed = proposals[s].tokens;
      const auto from = p.tokens.begin() + p.computed;
      input.insert(input.end(), from, from + rows[s] - std::ssize(proposed));
      input.insert(input.end(), proposed.begin(), proposed.end());
      run_rows[s] = rows[s];
      run_wanted[s] = wanted[s];
      first_row[s] = done;
      done += static_cast<size_t>(wanted[s]);
      (in_prompt(p) ? prompt : decoded) += rows[s];
    }
    if (prompt + decoded == 0) return;
    const int64_t spent = meter.macs();
    session.run_tokens(input, std::span(logits).subspan(before * static_cast<size_t>(logits_width)),
                       run_rows,
                       {.meter = &meter, .budget = &budget, .size = at_size, .last = run_wanted});
    if (prompt == 0) {
      statistics.decode_macs += meter.macs() - spent;
    } else {
      statistics.decode_macs += (meter.macs() - spent) * decoded / (prompt + decoded);
    }
  }

  void emit(Place& p, Generated& result, int32_t token, const std::string& text,
            const OnPiece& on_piece, std::optional<Finish>& finish) {
    result.text += text;
    if ((token >= 0 || !text.empty()) && on_piece && !on_piece({p.request, text, token}))
      finish = Finish::cancelled;
  }

  /// The next token; `proposal`, if any, is token `at` of what was proposed.
  int32_t choose(Place& p, std::span<const float> row, const Proposal* proposal, size_t at) {
    try {
      if (!proposal || proposal->distributions.empty()) return p.sampler.next(row, p.tokens);
      p.sampler.distribution(row, p.tokens, target);
      return verify(proposal->tokens[at], proposal->distributions[at], target, p.sampler, residual)
          .token;
    } catch (const Error& e) {
      throw Error(e.code(),
                  fmt::format("{}: behind token {} of prompt {}: {}", network.bundle().path(),
                              p.tokens.size(), p.request + 1, e.what()));
    }
  }

  /// Takes the tokens that a run of the network allows: as many proposals as stand, and one more.
  std::optional<Finish> accept_rows(size_t place, const float* row, Generated& result,
                                    const OnPiece& on_piece, int64_t max_tokens) {
    Place& p = *places[place];
    const Proposal& proposal = proposals[place];
    const size_t proposed = proposal.tokens.size();
    const int64_t known = std::ssize(p.tokens);
    std::optional<Finish> finish;
    size_t taken = 0;
    for (;; ++taken, row += logits_width) {
      const std::span<const float> here(row, static_cast<size_t>(logits_width));
      const int32_t token = choose(p, here, taken < proposed ? &proposal : nullptr, taken);
      finish = accept(p, token, result, on_piece, max_tokens);
      if (finish || taken == proposed || token != proposal.tokens[taken]) break;
    }
    statistics.accepted += static_cast<int64_t>(taken);
    p.length.learn(static_cast<int64_t>(proposed), static_cast<int64_t>(taken));
    if (proposed == 0) return finish;
    const int64_t valid = known + static_cast<int64_t>(taken);
    rows[place] = valid - p.computed;
    if (finish) return finish;
    session.rewind(static_cast<int64_t>(place), valid);
    drafter->keep(static_cast<int64_t>(place), valid);
    return finish;
  }

  /// Adds the token; whether, and why, it was the last.
  std::optional<Finish> accept(Place& p, int32_t token, Generated& result, const OnPiece& on_piece,
                               int64_t max_tokens) {
    std::optional<Finish> finish;
    if (std::ranges::count(p.stop_tokens, token)) {
      finish = Finish::stop_token;
    } else {
      p.tokens.push_back(token);
      result.tokens.push_back(token);
      emit(p, result, token, p.stream ? p.stop.push(p.stream->push(token)) : "", on_piece, finish);
      if (p.stop.stopped()) return Finish::stop_string;
      if (finish) return finish;
      if (std::ssize(result.tokens) >= max_tokens) {
        finish = Finish::max_tokens;
      } else if (std::ssize(p.tokens) > session.capacity()) {
        finish = Finish::context;
      }
    }
    if (!finish || !p.stream) return finish;
    std::string rest = p.stop.push(p.stream->flush());
    rest += p.stop.flush();
    if (p.stop.stopped()) finish = Finish::stop_string;
    std::optional<Finish> ignored;
    emit(p, result, -1, rest, on_piece, ignored);
    return finish;
  }

  void account(double seconds) {
    int64_t prompt = 0, decoded = 0;
    for (size_t s = 0; s < places.size(); ++s) {
      if (!places[s]) continue;
      (in_prompt(*places[s]) ? prompt : decoded) += rows[s];
    }
    const double each = seconds / static_cast<double>(std::max<int64_t>(1, prompt + decoded));
    statistics.prompt_tokens += prompt;
    statistics.decoded_tokens += decoded;
    statistics.prompt_seconds += each * static_cast<double>(prompt);
    statistics.decode_seconds += each * static_cast<double>(decoded);
  }

  std::vector<Generated> run(std::span<const GenerationRequest> requests, const OnPiece& on_piece) {
    for (size_t i = 0; i < requests.size(); ++i) check(requests[i], i, requests.size());
    std::vector<Generated> results(requests.size());
    for (size_t i = 0; i < requests.size(); ++i)
      results[i].prompt_tokens = std::ssize(requests[i].prompt);
    for (auto& place : places) place.reset();
    session.reset();
    meter.reset();
    if (drafter) drafter->reset_meter();
    statistics = {};
    size_t next = 0;
    while (true) {
      const Clock::time_point start_time = Clock::now();
      bool any = false;
      for (size_t s = 0; s < places.size(); ++s) {
        if (!places[s] && next < requests.size()) start(s, requests[next], next), ++next;
        any = any || places[s].has_value();
      }
      if (!any) break;
      if (drafter) propose(requests);
      compute();
      std::vector<size_t> done;
      for (size_t s = 0; s < places.size(); ++s) {
        if (!places[s] || wanted[s] == 0) continue;
        const size_t request = places[s]->request;
        const float* first = logits.data() + first_row[s] * static_cast<size_t>(logits_width);
        const auto finish =
            accept_rows(s, first, results[request], on_piece, requests[request].max_tokens);
        if (!finish) continue;
        results[request].finish = *finish;
        done.push_back(s);
      }
      account(seconds_since(start_time));
      for (size_t s = 0; s < places.size(); ++s)
        if (places[s]) places[s]->computed += rows[s];
      for (const size_t s : done) places[s].reset();
    }
    statistics.macs = meter.macs() + (drafter ? drafter->meter().macs() : 0);
    statistics.bytes = meter.bytes() + (drafter ? drafter->meter().bytes() : 0);
    return results;
  }
};

Generator::Generator(const Network& network, const text::Tokenizer* tokenizer,
                     const Options& options)
    : state_(std::make_unique<State>(network, tokenizer, options)) {}
Generator::~Generator() = default;
Generator::Generator(Generator&&) noexcept = default;
Generator& Generator::operator=(Generator&&) noexcept = default;

std::vector<Generated> Generator::run(std::span<const GenerationRequest> requests,
                                      const OnPiece& on_piece) {
  return state_->run(requests, on_piece);
}

const GenerationStatistics& Generator::statistics() const { return state_->statistics; }
int64_t Generator::context() const { return state_->session.capacity(); }
int64_t Generator::block() const { return state_->block; }
const Session& Generator::session() const { return state_->session; }

}  // namespace sluice::engine
