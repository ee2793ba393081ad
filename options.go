package llmrate

import "time"

// A RunOption changes one call of Run, Do, Acquire or TryAcquire. The zero value changes nothing.
type RunOption struct {
	kind     optionKind
	estimate Usage
	models   []string
	jobID    string
	maxWait  time.Duration
}

type optionKind int

const (
	noOption optionKind = iota
	optionEstimate
	optionModels
	optionJobID
	optionMaxWait
)

// WithEstimate replaces the job type's estimate for this call, for prompts whose size is known. Requests 0 means as
// the job type says; without OutputTokens no output is reserved. The type's EstimatedMemory stays.
func WithEstimate(u Usage) RunOption { return RunOption{kind: optionEstimate, estimate: u} }

// WithModels lets this call use only these models, in this order. Unknown models are ErrUnknownModel.
func WithModels[M ~string](models ...M) RunOption {
	names := make([]string, len(models))
	for i, m := range models {
		names[i] = string(m)
	}
	return RunOption{kind: optionModels, models: names}
}

// WithJobID names the job in events, in Attempt and in Stats. Default: the instance's ID and a number.
func WithJobID(id string) RunOption { return RunOption{kind: optionJobID, jobID: id} }

// WithMaxWait is how long this call waits for each model, instead of the job type's MaxWait. 0: not at all;
// math.MaxInt64: for ever.
func WithMaxWait(d time.Duration) RunOption { return RunOption{kind: optionMaxWait, maxWait: d} }
