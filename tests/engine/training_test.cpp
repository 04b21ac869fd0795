#include "engine/training.hpp"

#include <numeric>
#include <stop_token>

#include "tests/engine/small_modules.hpp"

namespace gradgram {
namespace {

using testing::random_tensor;
using testing::same_bits;

/// outputs = W x + b.
template <class T>
class Linear final : public Module<T> {
 public:
  Linear(std::size_t features, std::size_t outputs) : features_(features), outputs_(outputs) {
    parameters_.add("weight", random_tensor<T>(Shape{outputs, features}, 1));
    parameters_.add("bias", random_tensor<T>(Shape{outputs}, 2));
  }
  Var forward(Tape<T>& tape, Var x) const override {
    return ops::dense(tape, x, ops::Affine<T>{parameters_, 0, 1, 1, 1});
  }
  Shape input_shape() const override { return {features_}; }
  std::size_t outputs() const override { return outputs_; }
  const ParameterSet<T>& parameters() const override { return parameters_; }
  ParameterSet<T>& parameters() override { return parameters_; }

 private:
  std::size_t features_;
  std::size_t outputs_;
  ParameterSet<T> parameters_;
};

/// A plain trainer of the linear model in double: losses and their gradients by hand, the optimizers as
/// torch.optim documents them. Parameters: weights row by row, then biases.
struct PlainTrainer {
  TrainingOptions options;
  std::size_t features, outputs;
  std::vector<double> theta, velocity, mean, square;
  std::size_t steps = 0;
  std::size_t epochs = 0;

  double example(const double* x, const double* target, std::int32_t label,
                 std::vector<double>& gradient) const {
    std::vector<double> y(outputs);
    for (std::size_t k = 0; k < outputs; ++k) {
      y[k] = theta[outputs * features + k];
      for (std::size_t j = 0; j < features; ++j) y[k] += theta[k * features + j] * x[j];
    }
    double loss = 0;
    std::vector<double> dy(outputs);
    if (options.loss == Loss::MeanSquaredError) {
      for (std::size_t k = 0; k < outputs; ++k) {
        loss += (y[k] - target[k]) * (y[k] - target[k]) / double(outputs);
        dy[k] = 2 * (y[k] - target[k]) / double(outputs);
      }
    } else {
      double sum = 0;
      for (const double value : y) sum += std::exp(value);
      for (std::size_t k = 0; k < outputs; ++k) dy[k] = std::exp(y[k]) / sum;
      loss = -std::log(dy[std::size_t(label)]);
      dy[std::size_t(label)] -= 1;
    }
    for (std::size_t k = 0; k < outputs; ++k) {
      for (std::size_t j = 0; j < features; ++j) gradient[k * features + j] += dy[k] * x[j];
      gradient[outputs * features + k] += dy[k];
    }
    return loss;
  }

  double epoch(const Tensor<double>& inputs, const Tensor<double>& targets,
               const std::vector<std::int32_t>& labels) {
    const std::size_t n = inputs.shape()[0];
    const std::size_t batch = options.batch == 0 || options.batch > n ? n : options.batch;
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), 0U);
    if (batch < n) {
      Random random(options.seed, epochs);
      for (std::size_t i = n - 1; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    }
    double total = 0;
    for (std::size_t begin = 0; begin < n; begin += batch) {
      const std::size_t count = std::min(batch, n - begin);
      std::vector<double> gradient(theta.size());
      double loss = 0;
      for (std::size_t i = begin; i < begin + count; ++i) {
        loss += example(inputs.data() + order[i] * features, targets.data() + order[i] * outputs,
                        labels[order[i]], gradient);
      }
      loss /= double(count);
      for (std::size_t i = 0; i < theta.size(); ++i) {
        gradient[i] /= double(count);
        loss += options.l1 * std::abs(theta[i]) + options.l2 / 2 * theta[i] * theta[i];
        gradient[i] += options.l2 * theta[i] + options.l1 * (theta[i] > 0 ? 1 : theta[i] < 0 ? -1 : 0);
      }
      total += loss * double(count) / double(n);
      double rate = options.learning_rate;
      if (options.schedule == LearningRateSchedule::Cosine) {
        const double all = double(options.epochs) * std::ceil(double(n) / double(batch));
        rate *= double(steps) >= all ? 0 : (1 + std::cos(3.14159265358979323846 * double(steps) / all)) / 2;
      }
      ++steps;
      for (std::size_t i = 0; i < theta.size(); ++i) {
        const double g = gradient[i];
        switch (options.optimizer) {
          case Optimizer::Sgd:
            theta[i] -= rate * g;
            break;
          case Optimizer::Momentum:
            velocity[i] = steps == 1 ? g : options.momentum * velocity[i] + g;
            theta[i] -= rate * velocity[i];
            break;
          case Optimizer::Nesterov:
            velocity[i] = steps == 1 ? g : options.momentum * velocity[i] + g;
            theta[i] -= rate * (g + options.momentum * velocity[i]);
            break;
          case Optimizer::Adam: {
            mean[i] = options.beta1 * mean[i] + (1 - options.beta1) * g;
            square[i] = options.beta2 * square[i] + (1 - options.beta2) * g * g;
            const double mean_hat = mean[i] / (1 - std::pow(options.beta1, double(steps)));
            const double square_hat = square[i] / (1 - std::pow(options.beta2, double(steps)));
            theta[i] -= rate * mean_hat / (std::sqrt(square_hat) + options.epsilon);
            break;
          }
        }
      }
    }
    ++epochs;
    return total;
  }
};

std::vector<double> flat(const ParameterSet<double>& parameters) {
  std::vector<double> result;
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    result.insert(result.end(), parameters.value(p).span().begin(), parameters.value(p).span().end());
  }
  return result;
}

struct Problem {
  Tensor<double> inputs = random_tensor<double>(Shape{75, 3}, 11);
  Tensor<double> targets = random_tensor<double>(Shape{75, 2}, 12);
  std::vector<std::int32_t> labels;
  Problem() {
    Random random(13);
    for (std::size_t i = 0; i < 75; ++i) labels.push_back(static_cast<std::int32_t>(random.below(2)));
  }
};

double largest_difference(const TrainingOptions& options, const TrainingOptions& reference_options) {
  const Problem problem;
  Linear<double> module(3, 2);
  PlainTrainer plain{
      reference_options,     3, 2, flat(module.parameters()), std::vector<double>(8), std::vector<double>(8),
      std::vector<double>(8)};
  const Workers workers(2);
  Trainer<double> trainer(module, problem.inputs.view(), {problem.targets.view(), problem.labels}, options,
                          workers);
  double worst = 0;
  for (std::size_t epoch = 0; epoch < 4; ++epoch) {
    const double expected = plain.epoch(problem.inputs, problem.targets, problem.labels);
    worst = testing::worse(worst, std::abs(trainer.epoch() - expected));
    const auto found = flat(std::as_const(module).parameters());
    for (std::size_t i = 0; i < found.size(); ++i) {
      worst = testing::worse(worst, std::abs(found[i] - plain.theta[i]));
    }
  }
  EXPECT_EQ(trainer.epochs(), 4U);
  return worst;
}

TEST(Training, EqualsThePlainTrainer) {
  for (const Optimizer optimizer :
       {Optimizer::Sgd, Optimizer::Momentum, Optimizer::Nesterov, Optimizer::Adam}) {
    for (const Loss loss : {Loss::MeanSquaredError, Loss::CrossEntropy}) {
      for (const auto schedule : {LearningRateSchedule::Constant, LearningRateSchedule::Cosine}) {
        for (const std::size_t batch : {0U, 10U, 75U, 1000U}) {
          TrainingOptions options;
          options.optimizer = optimizer;
          options.loss = loss;
          options.schedule = schedule;
          options.batch = batch;
          options.epochs = 3;  // the fourth epoch lies beyond the schedule
          options.learning_rate = 0.05;
          options.l1 = 0.01;
          options.l2 = 0.02;
          options.seed = 5;
          EXPECT_TRUE(largest_difference(options, options) <= 1e-12)
              << int(optimizer) << int(loss) << int(schedule) << " " << batch << ": "
              << largest_difference(options, options);
        }
      }
    }
  }
}

TEST(Training, TheComparisonNoticesEveryOption) {
  TrainingOptions options;
  options.batch = 10;
  options.learning_rate = 0.05;
  options.epochs = 4;
  const auto differs = [&](auto change) {
    TrainingOptions other = options;
    change(other);
    return largest_difference(options, other) > 1e-6;
  };
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.learning_rate = 0.0501; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.l1 = 1e-3; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.l2 = 1e-3; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.seed = 1; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.schedule = LearningRateSchedule::Cosine; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.optimizer = Optimizer::Momentum; }));
  options.optimizer = Optimizer::Momentum;
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.optimizer = Optimizer::Nesterov; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.momentum = 0.89; }));
  options.optimizer = Optimizer::Adam;
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.beta1 = 0.89; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.beta2 = 0.99; }));
  EXPECT_TRUE(differs([](TrainingOptions& o) { o.epsilon = 1e-3; }));
}

template <class M>
std::vector<float> trained_bits(std::size_t threads, std::size_t batch, Optimizer optimizer) {
  M module(6, 3, 2);
  const std::size_t n = 61;
  const auto inputs = random_tensor<float>(module.input_shape().with_outer(n), 3);
  std::vector<std::int32_t> labels(n);
  for (std::size_t i = 0; i < n; ++i) labels[i] = static_cast<std::int32_t>(i % 2);
  TrainingOptions options;
  options.optimizer = optimizer;
  options.learning_rate = 0.02;
  options.batch = batch;
  options.loss = Loss::CrossEntropy;
  options.l1 = 1e-3;
  const Workers workers(threads);
  Trainer<float> trainer(module, inputs.view(), {{}, labels}, options, workers);
  std::vector<float> result;
  for (int epoch = 0; epoch < 3; ++epoch) result.push_back(static_cast<float>(trainer.epoch()));
  const ParameterSet<float>& parameters = module.parameters();
  for (std::size_t p = 0; p < parameters.count(); ++p) {
    result.insert(result.end(), parameters.value(p).span().begin(), parameters.value(p).span().end());
  }
  return result;
}

TEST(Training, SameBitsForAnyNumberOfThreads) {
  using Net = testing::SharedConvNet<float>;
  for (const Optimizer optimizer : {Optimizer::Nesterov, Optimizer::Adam}) {
    for (const std::size_t batch : {0U, 20U}) {
      const auto one = trained_bits<Net>(1, batch, optimizer);
      for (const std::size_t threads : {2U, 7U}) {
        const auto many = trained_bits<Net>(threads, batch, optimizer);
        ASSERT_EQ(one.size(), many.size());
        EXPECT_EQ(std::memcmp(one.data(), many.data(), one.size() * sizeof(float)), 0)
            << threads << " " << batch;
      }
    }
  }
}

TEST(Training, ManyExamplesInOneStepShareABoundedNumberOfGradients) {
  // 3,000 vectors are 94 blocks, more than there are gradients: the mean must still be over all of them.
  const std::size_t n = 3000;
  const auto inputs = random_tensor<double>(Shape{n, 3}, 11);
  const auto targets = random_tensor<double>(Shape{n, 2}, 12);
  TrainingOptions options;
  options.batch = 0;
  options.learning_rate = 0.05;
  Linear<double> module(3, 2);
  PlainTrainer plain{options, 3, 2, flat(module.parameters()), {}, {}, {}};
  const Workers workers(2);
  Trainer<double> trainer(module, inputs.view(), {targets.view(), {}}, options, workers);
  EXPECT_NEAR(trainer.epoch(), plain.epoch(inputs, targets, std::vector<std::int32_t>(n)), 1e-12);
  const auto found = flat(std::as_const(module).parameters());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], plain.theta[i], 1e-13);
}

TEST(Training, SeparableClassesAreLearned) {
  const std::size_t n = 200;
  auto inputs = random_tensor<float>(Shape{n, 4}, 3);
  std::vector<std::int32_t> labels(n);
  for (std::size_t i = 0; i < n; ++i) {
    const float margin = inputs(i, 0) - inputs(i, 2);
    labels[i] = margin > 0 ? 1 : 0;
    inputs(i, 0) += margin > 0 ? 0.3F : -0.3F;
  }
  for (const Optimizer optimizer :
       {Optimizer::Sgd, Optimizer::Momentum, Optimizer::Nesterov, Optimizer::Adam}) {
    testing::SharedNet<float> net(4, 2);
    TrainingOptions options;
    options.optimizer = optimizer;
    options.loss = Loss::CrossEntropy;
    options.learning_rate = optimizer == Optimizer::Adam ? 0.02 : 0.1;
    options.batch = 20;
    options.epochs = 30;
    options.schedule = LearningRateSchedule::Cosine;
    const Workers workers(2);
    Trainer<float> trainer(net, std::as_const(inputs).view(), {{}, labels}, options, workers);
    const double first = trainer.epoch();
    double last = first;
    for (int epoch = 1; epoch < 30; ++epoch) last = trainer.epoch();
    EXPECT_LT(last, 0.3 * first) << int(optimizer);
    const auto outputs = evaluate(net, std::as_const(inputs).view(), workers);
    std::size_t right = 0;
    for (std::size_t i = 0; i < n; ++i) right += (outputs(i, 1) > outputs(i, 0)) == (labels[i] == 1) ? 1 : 0;
    EXPECT_GE(right, 195U) << int(optimizer);
  }
}

TEST(Training, ALossThatIsNotFiniteLeavesTheParametersBeforeTheStep) {
  const Problem problem;
  Linear<double> module(3, 2);
  auto targets = random_tensor<double>(Shape{75, 2}, 12);
  targets(70, 1) = std::numeric_limits<double>::infinity();
  TrainingOptions options;
  options.batch = 0;
  const Workers workers(2);
  const auto before = flat(std::as_const(module).parameters());
  Trainer<double> trainer(module, problem.inputs.view(), {std::as_const(targets).view(), {}}, options,
                          workers);
  try {
    trainer.epoch();
    FAIL();
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("the loss is inf in epoch 1 at step 1"), std::string::npos)
        << error.what();
  }
  EXPECT_EQ(flat(std::as_const(module).parameters()), before);
  EXPECT_EQ(trainer.epochs(), 0U);
}

TEST(Training, DivergenceIsAnError) {
  const Problem problem;
  Linear<double> module(3, 2);
  TrainingOptions options;
  options.learning_rate = 1e6;
  options.batch = 10;
  const Workers workers(1);
  Trainer<double> trainer(module, problem.inputs.view(), {problem.targets.view(), {}}, options, workers);
  EXPECT_THROW(
      {
        for (int epoch = 0; epoch < 100; ++epoch) trainer.epoch();
      },
      NumericError);
}

TEST(Training, StopsOnRequest) {
  const Problem problem;
  Linear<double> module(3, 2);
  const Workers workers(1);
  Trainer<double> trainer(module, problem.inputs.view(), {problem.targets.view(), {}}, {}, workers);
  std::stop_source source;
  source.request_stop();
  const auto before = flat(std::as_const(module).parameters());
  EXPECT_THROW(trainer.epoch(source.get_token()), Cancelled);
  EXPECT_EQ(flat(std::as_const(module).parameters()), before);
}

TEST(Training, RefusesWhatDoesNotMatch) {
  const Problem problem;
  Linear<double> module(3, 2);
  const Workers workers(1);
  const auto build = [&](TensorView<const double> x, Targets<double> targets, TrainingOptions options) {
    Trainer<double>(module, x, targets, options, workers);
  };
  const auto with = [&](auto change) {
    TrainingOptions options;
    change(options);
    build(problem.inputs.view(), {problem.targets.view(), problem.labels}, options);
  };
  EXPECT_NO_THROW(with([](TrainingOptions&) {}));
  EXPECT_THROW(with([](TrainingOptions& o) { o.learning_rate = -1; }), ArgumentError);
  try {
    with([](TrainingOptions& o) { o.learning_rate = -1e-9; });
    ADD_FAILURE() << "a negative rate passed";
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "training: learning_rate (-1e-09) must lie in [0, inf)");
  }
  EXPECT_THROW(with([](TrainingOptions& o) { o.learning_rate = NAN; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.momentum = 1; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.beta1 = -0.1; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.beta2 = 1; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.epsilon = 0; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.epochs = 0; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.l1 = -1; }), ArgumentError);
  EXPECT_THROW(with([](TrainingOptions& o) { o.l2 = INFINITY; }), ArgumentError);
  const Tensor<double> wide(Shape{75, 4});
  EXPECT_THROW(build(wide.view(), {problem.targets.view(), {}}, {}), ShapeError);
  const Tensor<double> none(Shape{0, 3});
  EXPECT_THROW(build(none.view(), {problem.targets.view(), {}}, {}), ArgumentError);
  EXPECT_THROW(build(problem.inputs.view(), {problem.inputs.view(), {}}, {}), ShapeError);
  TrainingOptions entropy;
  entropy.loss = Loss::CrossEntropy;
  EXPECT_THROW(build(problem.inputs.view(), {}, entropy), ShapeError);
  std::vector<std::int32_t> labels(75);
  labels[74] = 2;
  EXPECT_THROW(build(problem.inputs.view(), {{}, labels}, entropy), ArgumentError);
}

}  // namespace
}  // namespace gradgram
