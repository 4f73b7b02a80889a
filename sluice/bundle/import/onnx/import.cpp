#include <algorithm>
#include <set>

#include "sluice/base/error.h"
#include "sluice/base/json.h"
#include "sluice/bundle/import/onnx.h"
#include "sluice/bundle/import/onnx/lowering.h"
#include "sluice/bundle/text.h"

namespace sluice::bundle {
namespace {

using onnx::Call;
using onnx::ConstantPtr;
using onnx::GraphSource;
using onnx::Lowering;
using onnx::NodeSource;
using onnx::Val;
using onnx::ValueSource;

std::string dims_text(const ValueSource& value) {
  std::string text;
  for (size_t i = 0; i < value.dims.size(); ++i) {
    if (i) text += " x ";
    text += value.dims[i] >= 0       ? std::to_string(value.dims[i])
            : value.names[i].empty() ? "?"
                                     : printable(value.names[i], 30);
  }
  return text.empty() ? "scalar" : text;
}

class OnnxReader {
 public:
  OnnxReader(const onnx::ModelSource& model, const OnnxOptions& options)
      : model_(model),
        options_(options),
        what_(model.file->what),
        net_{what_, {}, {}},
        to_(net_, model.opset, options.folded_elements) {}

  OnnxResult run(Builder& builder) {
    Scope scope{nullptr, {}};
    read_initializers(model_.graph, scope);
    read_inputs(scope);
    run_nodes(model_.graph, scope);
    read_outputs(scope);
    if (options_.simplify) onnx::simplify(net_);
    write(builder);
    result_.producer = model_.producer;
    result_.opset = model_.opset;
    result_.read_nodes = model_.graph.nodes.size();
    return std::move(result_);
  }

 private:
  struct Scope {
    const Scope* outer;
    std::map<std::string, Val> values;
    const Val* find(const std::string& name) const {
      const auto found = values.find(name);
      if (found != values.end()) return &found->second;
      return outer ? outer->find(name) : nullptr;
    }
  };

  void read_initializers(const GraphSource& graph, Scope& scope) {
    for (const auto& tensor : graph.initializers) {
      if (!scope.values.emplace(tensor->name, to_.known(load(*tensor))).second)
        fail(Code::format, "{}: two initializers are called '{}'", what_, printable(tensor->name));
    }
  }

  ConstantPtr load(const onnx::TensorSource& tensor) const {
    return onnx::load_tensor(tensor, what_, model_.folder);
  }

  Shape shape_of(const ValueSource& input) const {
    const auto given = options_.inputs.find(input.name);
    Shape shape = input.dims;
    if (given != options_.inputs.end()) {
      const Shape& wanted = given->second;
      bool fits = !input.ranked || wanted.size() == input.dims.size();
      for (size_t i = 0; fits && input.ranked && i < wanted.size(); ++i)
        fits = input.dims[i] < 0 || input.dims[i] == wanted[i];
      if (!fits)
        fail(Code::shape, "{}: input '{}' is {}; {} does not fit", what_, printable(input.name),
             dims_text(input), to_string(wanted));
      shape = wanted;
    } else if (!shape.empty() && shape[0] < 0) {
      shape[0] = 1;
    }
    if (!input.ranked && given == options_.inputs.end())
      fail(Code::usage, "{}: input '{}' has no shape; give it: --input {}=1x3x32x32", what_,
           printable(input.name), printable(input.name));
    for (const int64_t size : shape) {
      if (size < 0)
        fail(Code::usage, "{}: input '{}' is {}; give its sizes: --input {}=1x3x48x320", what_,
             printable(input.name), dims_text(input), printable(input.name));
      if (size == 0)
        fail(Code::shape, "{}: input '{}' is {}: nothing in it", what_, printable(input.name),
             to_string(shape));
    }
    if (numel(shape, what_ + ": input") > GraphLimits::kValueElements)
      fail(Code::limit, "{}: input '{}' of {} has more than {} elements", what_,
           printable(input.name), to_string(shape), GraphLimits::kValueElements);
    return shape;
  }

  void read_inputs(Scope& scope) {
    std::set<std::string> names;
    for (const ValueSource& input : model_.graph.inputs) {
      if (scope.values.count(input.name)) continue;  // its initializer is its value
      names.insert(input.name);
      if (!input.tensor)
        fail(Code::unsupported, "{}: input '{}' is no tensor", what_, printable(input.name));
      if (onnx::type_bytes(input.type) == 0 || input.type == onnx::Type::bf16)
        fail(Code::dtype, "{}: input '{}' is of {}; expected numbers", what_, printable(input.name),
             onnx::type_name(input.type));
      const bool integer = onnx::is_integer(input.type);
      if (const auto fixed = options_.constants.find(input.name);
          fixed != options_.constants.end()) {
        scope.values[input.name] = to_.known(fixed->second);
        continue;
      }
      const Shape shape = shape_of(input);
      if (const auto fixed = options_.values.find(input.name); fixed != options_.values.end()) {
        to_.spend(shape);
        const size_t count = static_cast<size_t>(numel(shape));
        scope.values[input.name] = to_.known(
            integer ? onnx::make_constant(
                          shape, std::vector<int64_t>(count, static_cast<int64_t>(fixed->second)))
                    : onnx::make_constant(
                          shape, std::vector<float>(count, static_cast<float>(fixed->second))));
        continue;
      }
      net_.nodes.push_back({"", input.name, {}, {}, {}, Lowering::stripped(shape)});
      Val value = to_.made(static_cast<int>(net_.nodes.size()) - 1, shape);
      value.integer = integer;
      if (options_.bgr && shape.size() == 4 && shape[1] == 3) {
        to_.set_path(input.name + ".to_bgr");
        value = to_.gather(value, 1, {2, 1, 0});
      }
      scope.values[input.name] = value;
      inputs_.push_back({input.name, Lowering::stripped(shape)});
    }
    if (inputs_.empty())
      fail(Code::unsupported, "{}: a graph without inputs; there is nothing to run", what_);
    const auto require = [&](const std::string& name, const char* option) {
      if (names.count(name)) return;
      std::string known;
      for (const std::string& each : names)
        known += (known.empty() ? "" : ", ") + printable(each, 60);
      fail(Code::usage, "{}: {}: no input is called '{}'; there are {}", what_, option,
           printable(name), known);
    };
    for (const auto& [name, shape] : options_.inputs) require(name, "--input");
    for (const auto& [name, value] : options_.values) require(name, "--value");
    for (const auto& [name, output] : options_.carries) require(name, "--carry");
  }

  void run_nodes(const GraphSource& graph, Scope& scope) {
    for (const NodeSource& node : graph.nodes) run_node(node, scope);
  }

  void run_node(const NodeSource& node, Scope& scope) {
    to_.set_path(!node.outputs.empty() && !node.outputs[0].empty() ? node.outputs[0] : node.name);
    const std::string place =
        fmt::format("{}: node '{}' ({})", what_, printable(to_.path(), 80), printable(node.op, 40));
    if (!node.domain.empty() && node.domain != "ai.onnx")
      fail(Code::unsupported, "{}: an operator of '{}'; those of ONNX itself are read", place,
           printable(node.domain, 40));
    const onnx::OperatorEntry* entry = onnx::find_onnx_operator(node.op);
    if (!entry)
      fail(Code::unsupported,
           "{}: the operator is not read; docs/onnx-operators.md lists those "
           "that are",
           place);
    Call call{to_, node, {}, what_, {}, {}};
    for (const std::string& name : node.inputs) {
      if (name.empty()) {
        call.inputs.push_back(nullptr);
        continue;
      }
      const Val* value = scope.find(name);
      if (!value)
        fail(Code::missing,
             "{}: input '{}' is made by no earlier node and is no initializer; the graph has a "
             "cycle or lacks a part",
             place, printable(name));
      call.inputs.push_back(value);
    }
    call.run = [&](const GraphSource& graph) {
      Scope inner{&scope, {}};
      read_initializers(graph, inner);
      run_nodes(graph, inner);
      std::vector<Val> outputs;
      for (const ValueSource& output : graph.outputs) {
        const Val* value = inner.find(output.name);
        if (!value)
          fail(Code::missing, "{}: output '{}' of a branch is made by no node", place,
               printable(output.name));
        outputs.push_back(*value);
      }
      return outputs;
    };
    call.load = [&](const onnx::TensorSource& tensor) { return load(tensor); };
    std::vector<Val> outputs;
    try {
      outputs = entry->lower(call);
    } catch (const Error& error) {
      const std::string message = error.what();
      if (message.starts_with(what_)) throw;
      throw Error(error.code(), place + ": " + message);
    }
    for (size_t i = 0; i < node.outputs.size(); ++i) {
      if (node.outputs[i].empty()) continue;
      if (i >= outputs.size()) fail(Code::unsupported, "{}: output {} is not computed", place, i);
      check_result(outputs[i], place);
      if (!scope.values.emplace(node.outputs[i], outputs[i]).second)
        fail(Code::format, "{}: '{}' is made twice", place, printable(node.outputs[i]));
    }
  }

  static void check_result(const Val& value, const std::string& place) {
    if (value.shape.size() > onnx::Limits::kRank)
      fail(Code::limit, "{}: a result of {} dimensions; at most {} are read", place,
           value.shape.size(), onnx::Limits::kRank);
    if (!value.constant && numel(value.shape, "result") < 1)
      fail(Code::shape, "{}: a result of {}: nothing in it", place, to_string(value.shape));
  }

  void read_outputs(Scope& scope) {
    std::vector<std::string> wanted = options_.outputs;
    if (wanted.empty())
      for (const ValueSource& output : model_.graph.outputs) wanted.push_back(output.name);
    for (const auto& [input, output] : options_.carries)
      if (std::find(wanted.begin(), wanted.end(), output) == wanted.end()) wanted.push_back(output);
    if (wanted.empty()) fail(Code::format, "{}: the graph has no output", what_);
    std::set<int> taken;
    for (const std::string& name : wanted) {
      const Val* value = scope.find(name);
      if (!value) fail(Code::missing, "{}: output '{}' is made by no node", what_, printable(name));
      to_.set_path(name);
      int node = to_.as(*value, Lowering::stripped(value->shape));
      // An output is a node's own value.
      if (net_.at(node).op.empty() || !taken.insert(node).second) {
        node = to_.add("reshape", {node}, {{"shape", std::vector<int64_t>(net_.at(node).shape)}});
        taken.insert(node);
      }
      net_.outputs.push_back(node);
      names_.push_back(name);
      result_.output_shapes.push_back(value->shape);
    }
  }

  void write(Builder& builder) {
    std::map<int, Value> inputs;
    for (int i = 0; i < static_cast<int>(net_.nodes.size()); ++i)
      if (net_.at(i).op.empty())
        inputs[i] = builder.input(input_name(net_.at(i).path), net_.at(i).shape);
    const std::vector<Value> outputs =
        onnx::write(net_, inputs, builder, options_.weights, options_.round_activations);
    for (const Value& output : outputs) builder.output(output);
    for (const auto& [input, output] : options_.carries) {
      const auto at = std::find(names_.begin(), names_.end(), output) - names_.begin();
      builder.carry(input_name(input), outputs[static_cast<size_t>(at)]);
    }
    for (size_t i = 0; i < outputs.size(); ++i)
      result_.outputs.push_back({names_[i], outputs[i].shape});
    result_.inputs = inputs_;
    if (!options_.task.kind.empty()) {
      Task task = options_.task;
      if (options_.finish_task) options_.finish_task(task, outputs[0].shape);
      builder.set_task(std::move(task));
    }
    builder.set_provenance_json(Json::array({{{"step", "import-onnx"},
                                              {"opset", model_.opset},
                                              {"producer", printable(model_.producer)},
                                              {"nodes", model_.graph.nodes.size()}}})
                                    .dump());
  }

  /// "v0", "v1", .. are names of nodes' values.
  static std::string input_name(const std::string& name) {
    const bool like_a_node = name.size() > 1 && name[0] == 'v' &&
                             name.find_first_not_of("0123456789", 1) == std::string::npos;
    return name.empty() || like_a_node ? "input." + name : name;
  }

  const onnx::ModelSource& model_;
  const OnnxOptions& options_;
  const std::string& what_;
  onnx::Net net_;
  Lowering to_;
  std::vector<Value> inputs_;
  std::vector<std::string> names_;
  OnnxResult result_;
};

}  // namespace

OnnxResult build_onnx(const onnx::ModelSource& model, const OnnxOptions& options,
                      Builder& builder) {
  return OnnxReader(model, options).run(builder);
}

OnnxResult import_onnx(const std::string& source, const std::string& output,
                       const OnnxOptions& options) {
  const onnx::ModelSource model = onnx::open_model(source);
  Builder builder;
  OnnxResult result = build_onnx(model, options, builder);
  builder.write(output);
  return result;
}

}  // namespace sluice::bundle
