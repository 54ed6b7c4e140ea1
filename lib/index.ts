/** Adapt, train, compress, merge, edit and inspect the weights of neural networks from Node.js. */
export type { AdaptedModel, ModelParts } from './adapted_model.js'
export { type ActiveAdapter, type ActiveAdapters, activeOf } from './adapters/active.js'
export { Adapter, type Attachment, type AttachOptions } from './adapters/adapter.js'
export { asLora } from './adapters/as_lora.js'
export type { SharedTensors } from './adapters/attachment.js'
export { type CombinationType, type CombineOptions, combineAdapters } from './adapters/combine.js'
export { type AdaLoraOptions, adalora } from './adapters/methods/adalora.js'
export { type BoftOptions, boft } from './adapters/methods/boft.js'
export { type CompacterOptions, compacter } from './adapters/methods/compacter.js'
export { type DifforaOptions, diffora } from './adapters/methods/diffora.js'
export type { DifforaSearch } from './adapters/methods/diffora_search.js'
export { type DseeOptions, dsee } from './adapters/methods/dsee.js'
export { type DseePruned, type DseePruneMode, type DseePruneOptions, dseePrune } from './adapters/methods/dsee_prune.js'
export { type DseeSaved, type DseeSaveOptions, type DseeSizes, dseeSave } from './adapters/methods/dsee_save.js'
export { type DseePruneStructuredOptions, dseePruneStructured } from './adapters/methods/dsee_structured.js'
export type { SparseMethod } from './adapters/methods/dsee_support.js'
export { type EvaOptions, type EvaSettings, eva } from './adapters/methods/eva.js'
export { type FloraOptions, flora } from './adapters/methods/flora.js'
export { type Ia3Options, ia3 } from './adapters/methods/ia3.js'
export { type LamdaOptions, lamda } from './adapters/methods/lamda.js'
export { type LolduOptions, loldu } from './adapters/methods/loldu.js'
export { lora } from './adapters/methods/lora.js'
export type { LoraInit, LoraOptions } from './adapters/methods/lora_config.js'
export { type LoraSbOptions, type LoraXsOptions, loraSb, loraXs } from './adapters/methods/lora_xs.js'
export { lqLora } from './adapters/methods/lq_lora.js'
export type { LqLoraCandidate, LqLoraOptions } from './adapters/methods/lq_lora_config.js'
export { type MissOptions, miss } from './adapters/methods/miss.js'
export { type MonarchAdapterOptions, monarchAdapter } from './adapters/methods/monarch_adapter.js'
export { type OftOptions, oft } from './adapters/methods/oft.js'
export { type RandLoraOptions, randlora } from './adapters/methods/randlora.js'
export { type S2ftOptions, s2ft, s2ftOverlap } from './adapters/methods/s2ft.js'
export { type CoupledOrders, permuteCoupled } from './adapters/methods/s2ft_permute.js'
export type { S2ftAxis, S2ftSelection, SelectedChannels } from './adapters/methods/s2ft_selection.js'
export { type SaltOptions, salt } from './adapters/methods/salt.js'
export { type SvfitOptions, svfit } from './adapters/methods/svfit.js'
export { type VeraOptions, vera } from './adapters/methods/vera.js'
export type {
  AttachedSite,
  AttachProgress,
  BufferDeclaration,
  Factors,
  InitContext,
  InitialChange,
  MergeContext,
  Merged,
  OptimizerContext,
  ParameterDeclaration,
  Parametrization,
  ParametrizationType,
  PrepareContext,
  Prepared,
  ResolveContext,
  SharedDeclaration,
  SiteContext,
  SitePart,
  SitePlan,
  SiteTensors,
  StoredFactors,
  TargetModules,
  WriteOptions,
  Written,
} from './adapters/parametrization.js'
export type { SaveOptions } from './adapters/peft_folder.js'
export { parametrizations } from './adapters/registry.js'
export type { TargetFilter } from './adapters/target_modules.js'
export type { TargetOptions } from './adapters/targeting.js'
export type { Sequence } from './data/collate.js'
export { type Batch, type BatchOptions, Dataset, type DatasetOptions, type SkippedRow } from './data/dataset.js'
export type { EncodedChunk, EncodeOptions } from './data/encode.js'
export {
  type ExampleBlock,
  type ExampleOptions,
  type RecognisedRows,
  readExamples,
  recogniseRows,
} from './data/examples.js'
export { openRows, type Row, type RowBlock, type RowOptions, type RowSource } from './data/rows.js'
export type {
  ClassificationExample,
  ColumnNames,
  DataTask,
  LanguageExample,
  PairExample,
  PreferenceExample,
  TaskExamples,
} from './data/shapes.js'
export {
  type EmbedOptions,
  EncoderModel,
  type EncoderSettings,
  type LoadEncoderOptions,
  loadEncoder,
} from './encoder_model.js'
export { createEngine, type Engine } from './engine/engine.js'
export type {
  EndedRequest,
  EngineListener,
  EngineState,
  EngineStep,
  RequestEnd,
} from './engine/events.js'
export type { EngineMemory, EngineOptions, EngineRequestOptions } from './engine/options.js'
export { HeddleError, type HeddleErrorCode, type HeddleErrorOptions } from './errors.js'
export { type ExportGgufOptions, exportGguf, exportGgufLora } from './formats/gguf_export.js'
export type { HubOptions, HubProgress } from './formats/hub.js'
export type { SamplingOptions } from './generate/options.js'
export type { RecomputePolicy } from './graph/compile.js'
export { onDevice, setDevice } from './graph/device.js'
export { grad, gradients, hvp, jvp, type Traced, valueAndGrad, vjp } from './graph/grad.js'
export {
  type AttributeType,
  type Decomposition,
  defineOperator,
  type Flops,
  type OperatorDefinition,
  operators,
  type Vjp,
  type VjpContext,
} from './graph/operator.js'
export * from './graph/ops/attention.js'
export { moveAxis } from './graph/ops/axes.js'
export { blockDiagonal } from './graph/ops/block_diagonal.js'
export type { ChainOptions } from './graph/ops/chain.js'
export * from './graph/ops/conv.js'
export * from './graph/ops/einsum.js'
export * from './graph/ops/elementwise.js'
export * from './graph/ops/gather.js'
export * from './graph/ops/grouped_low_rank.js'
export * from './graph/ops/index.js'
export * from './graph/ops/kronecker.js'
export * from './graph/ops/loss.js'
export * from './graph/ops/matmul.js'
export * from './graph/ops/monarch.js'
export * from './graph/ops/norm.js'
export * from './graph/ops/paged_attention.js'
export * from './graph/ops/pool.js'
export * from './graph/ops/random.js'
export * from './graph/ops/reduce.js'
export * from './graph/ops/rope.js'
export * from './graph/ops/sample.js'
export * from './graph/ops/scan.js'
export * from './graph/ops/segment.js'
export * from './graph/ops/softmax.js'
export * from './graph/ops/sort.js'
export * from './graph/ops/sparse.js'
export * from './graph/ops/stop_gradient.js'
export * from './graph/ops/tucker.js'
export * from './graph/ops/walsh_hadamard.js'
export type { Padding, Pair } from './graph/ops/window.js'
export type { ScopePattern } from './graph/passes/recompute_scopes.js'
export {
  type Computed,
  type OperatorTime,
  type Program,
  type ProgramOptions,
  type ProgramPlan,
  type ProgramRunOptions,
  program,
  type RunOptions,
} from './graph/program.js'
export {
  type Attributes,
  type AttributeValue,
  assign,
  type Node,
  read,
  Sym,
  type SymType,
  type Trace,
  within,
} from './graph/sym.js'
export {
  ImageModel,
  type ImageScoreOptions,
  type LoadImageClassifierOptions,
  loadImageClassifier,
} from './image_model.js'
export {
  cholesky,
  type Eigh,
  eigh,
  type FactorOptions,
  type Ldu,
  type Lu,
  ldu,
  lu,
  type PivotedQr,
  type Qr,
  qr,
  qrPivoted,
  type Svd,
  svd,
  svdvals,
} from './linalg/factorise.js'
export * from './linalg/incremental_svd.js'
export * from './linalg/k_means.js'
export * from './linalg/low_rank.js'
export * from './linalg/permutation.js'
export * from './linalg/polar.js'
export * from './linalg/solve.js'
export {
  type DecoderEmbedOptions,
  type DecoderPooling,
  type FinishReason,
  type GenerateBatchOptions,
  type GeneratedText,
  type GeneratedToken,
  type GenerateOptions,
  type GenerateTokensOptions,
  type JsonSchema,
  type LoadOptions,
  loadModel,
  Model,
  type Prompt,
  type ResponseFormat,
} from './model.js'
export type {
  CausalLm,
  DecoderInputs,
  FreshHeads,
  KeyValueCache,
  KeyValueShape,
  LengthDependence,
} from './models/causal_lm.js'
export { ContiguousCache, type LayerCache } from './models/contiguous_cache.js'
export { type Encoder, type EncoderInputs, type Pooling, pool } from './models/encoder.js'
export type { ImageClassifier } from './models/image_classifier.js'
export { type RandomCheckpointOptions, writeRandomCheckpoint } from './models/random_checkpoint.js'
export type { SavedDType, SaveModelOptions } from './models/save.js'
export type { ClassifierInputs, ClassifierNetwork } from './models/sequence_classifier.js'
export type { Device } from './native.js'
export type { ConfigSource, Network } from './nn/network.js'
export type { Forward, Site, SiteComputation, SiteHook, SiteKind } from './nn/site.js'
export { type CausalLmOptions, causalLm, type Evaluation } from './objectives/causal_lm.js'
export { crossEntropy } from './objectives/causal_lm_loss.js'
export {
  type CosineSimilarityOptions,
  cosineSimilarity,
  type ScoredPair,
  type ScoredPairBatch,
  type SimilarityEvaluation,
} from './objectives/cosine_similarity.js'
export {
  type DpoLoss,
  type DpoOptions,
  type DpoTerms,
  dpo,
  dpoTerms,
  logSigmoid,
  type PreferenceEvaluation,
} from './objectives/dpo.js'
export {
  type Encoded,
  ExampleData,
  type ExampleKind,
  type ExampleParts,
  type ExampleReading,
  openExamples,
} from './objectives/example_data.js'
export {
  type ContrastiveBatch,
  type ContrastiveTexts,
  type MultipleNegativesOptions,
  multipleNegatives,
  type RetrievalEvaluation,
} from './objectives/multiple_negatives.js'
export type {
  BatchArray,
  BatchOrder,
  EvaluationResult,
  Objective,
  OpenOptions,
  PrepareOptions,
  ScoreArray,
  Scoreboard,
  Syms,
  TrainingData,
} from './objectives/objective.js'
export { type OrpoOptions, orpo } from './objectives/orpo.js'
export type { AnswerScores, PreferenceBatch, PreferencePair } from './objectives/preference_pairs.js'
export {
  type ClassificationBatch,
  type ClassificationEvaluation,
  type ClassScore,
  type LabelledText,
  type LabelsInOptions,
  labelsIn,
  type SequenceClassificationOptions,
  sequenceClassification,
} from './objectives/sequence_classification.js'
export type { TextBatch } from './objectives/text_batches.js'
export { type Calibration, type CalibrationOptions, calibrationOf, type Watch } from './observers/calibration.js'
export { type ObserveOptions, observeInputs, type SharedInput } from './observers/site_inputs.js'
export { type WeightGradientOptions, weightGradients } from './observers/weight_gradients.js'
export { type AdafactorOptions, adafactor } from './optim/adafactor.js'
export { type AdamWOptions, adamw } from './optim/adamw.js'
export { clipByGlobalNorm, globalNorm } from './optim/clip.js'
export {
  chain,
  type GradientTransform,
  mapParameters,
  type TransformState,
  type UpdateContext,
  zerosLike,
} from './optim/gradient_transform.js'
export { type LionOptions, lion } from './optim/lion.js'
export { loraPlusGroups, type ParameterGroup, withParameterGroups } from './optim/parameter_groups.js'
export {
  constantSchedule,
  cosineSchedule,
  cosineWithRestartsSchedule,
  inverseSqrtSchedule,
  linearSchedule,
  namedSchedule,
  polynomialSchedule,
  type Schedule,
  type ScheduleName,
  type SchedulerOptions,
  scheduleNames,
  warmupStableDecaySchedule,
} from './optim/schedule.js'
export { type SgdOptions, sgd } from './optim/sgd.js'
export {
  type StepRequest,
  type StepResult,
  type TrainingStep,
  type TrainingStepOptions,
  trainingStep,
} from './optim/training_step.js'
export {
  type Classification,
  type ClassifyOptions,
  type LoadClassifierOptions,
  loadSequenceClassifier,
  SequenceClassifier,
} from './sequence_classifier.js'
export { type BlockDiagonalMatrixOptions, blockDiagonalMatrix } from './structured/block_diagonal_matrix.js'
export {
  type Completion,
  type CompletionOptions,
  type CompletionReport,
  type CompletionRound,
  completeMatrix,
} from './structured/completion.js'
export { denseMatrix } from './structured/dense_matrix.js'
export { type KroneckerMatrixOptions, kroneckerMatrix } from './structured/kronecker_matrix.js'
export { type LowRankMatrixOptions, lowRankMatrix } from './structured/low_rank_matrix.js'
export { type MonarchMatrixOptions, monarchMatrix } from './structured/monarch_matrix.js'
export { structures } from './structured/registry.js'
export { densifyLinear, type ReplacedLinear, type Replacement, replaceLinear } from './structured/replace_linear.js'
export { loadStructured, saveStructured } from './structured/saved_matrices.js'
export {
  disposeSupport,
  nmMask,
  type RandomSupportOptions,
  randomSupport,
  type SparseEntries,
  type SupportOfEntries,
  supportFromEntries,
  supportFromMask,
  supportFromRows,
} from './structured/sparse.js'
export { type SparseLowRankMatrixOptions, sparseLowRankMatrix } from './structured/sparse_low_rank.js'
export type {
  Projection,
  SavedStructure,
  Structure,
  StructureConfig,
  StructuredMatmulOptions,
  StructuredMatrix,
  StructureKind,
} from './structured/structured_matrix.js'
export {
  disposeTucker,
  type HooiDecomposition,
  type HooiOptions,
  type HosvdOptions,
  hooi,
  hosvd,
  type Tucker,
  type TuckerDecomposition,
  type TuckerOptions,
  tuckerParameterCount,
  tuckerToDense,
} from './structured/tucker.js'
export { type TuckerMatrixOptions, tuckerMatrix } from './structured/tucker_matrix.js'
export { type DType, dtypeSize, dtypes, type TypedArray } from './tensor/dtype.js'
export { Tensor, tensor, write, zeros } from './tensor/tensor.js'
export {
  type ChatMessage,
  type EncodeBatchOptions,
  type EncodedBatch,
  type EncodedChat,
  type RenderOptions,
  Tokenizer,
  type TokenizerInfo,
  type TokenizerSource,
  TokenStream,
} from './tokenize/tokenizer.js'
export { type EvaluateOptions, evaluate } from './train/evaluate.js'
export { History } from './train/history.js'
export type {
  CommonTrainOptions,
  EvaluationEvent,
  ObjectiveTrainOptions,
  Sample,
  TrainOptions,
} from './train/options.js'
export {
  type ConfusionMatrix,
  type ReportEvaluation,
  type ReportStep,
  type ReportValue,
  renderReport,
  type TrainingReport,
} from './train/report.js'
export { type TrainStep, train } from './train/train.js'
export type { Trainable } from './train/trainable.js'
