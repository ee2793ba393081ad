package llmrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"
)

// Config describes a limiter. Models and JobTypes are required; the zero value of everything else is a good default.
// New takes copies: later changes to the maps and slices have no effect.
type Config[M ~string] struct {
	// Models in order of preference: a job that finds no room on one in time moves on to the next.
	Models []ModelConfig[M]

	// JobTypes by name: the classes of jobs among which every model is shared out.
	JobTypes map[string]JobType[M]

	Memory MemoryConfig
	Ratios RatioConfig

	// Backend shares the models' limits with the other instances of a fleet. Nil: this process has them to itself.
	Backend Backend

	// InstanceID names this limiter in the fleet and begins the IDs of its jobs. Default: unique per limiter.
	InstanceID string

	// Logger receives a few lines about the configuration and about changes of state, none per job. Default: silent.
	Logger *slog.Logger

	// OnEvent is called for every event, from the goroutine that caused it, outside every lock. It may call the
	// limiter. It must not block: the job that caused the event waits for it. If it panics, so does the call that caused
	// the event, without losing any capacity; a RatiosEvent can come from a timer, where a panic ends the program.
	OnEvent func(context.Context, Event)
}

// ModelConfig describes one model: one quota of a provider. If several model names share one quota, declare them as one model.
type ModelConfig[M ~string] struct {
	ID     M
	Limits Limits

	// Pricing is used for Result.Cost only.
	Pricing Pricing

	// MinCapacity and MaxCapacity bound the slots of each job type on this model. They override the job type's share and
	// its part of the memory, never the model's limits or the whole memory budget. 0: not bounded, though a job type
	// that has nothing charged may always start one job.
	MinCapacity, MaxCapacity int

	// CountTokens says what counts against the Tokens limits, for providers that weigh or leave out some tokens. It
	// must be pure, quick and safe for concurrent use. Default: input, cached and output together.
	CountTokens func(Usage) int64
}

// Limits of a model; 0 means not limited. Negative values and values above MaxAmount are refused.
type Limits struct {
	RequestsPerMinute, RequestsPerDay           int64
	TokensPerMinute, TokensPerDay               int64
	InputTokensPerMinute, OutputTokensPerMinute int64 // input excludes cached tokens
	MaxConcurrent                               int64 // jobs running at the same time

	// Custom limits: any other window, such as the 10-second slices in which Azure counts requests.
	Custom []CustomLimit

	// Refill of the limits above, those in Custom excepted: FixedWindow (the default) or Continuous.
	Refill Refill
}

// CustomLimit is a limit over a window of any length.
type CustomLimit struct {
	Resource Resource
	Per      time.Duration // from 1 ms to 366 days
	Max      int64         // at most this much in each window, 1 or more
	Refill   Refill
}

// Refill says how a limit gives capacity back.
//
// FixedWindow counts from zero in each calendar minute or day (UTC), or in each multiple of CustomLimit.Per since the
// Unix epoch.
//
// Continuous is a token bucket: it refills evenly, limit units per window, and holds one window's worth. What it
// holds can go out in one burst, so that up to twice the limit can start within one window's length. Where a provider
// enforces shorter slices ("60 a minute may be enforced as 1 a second"), use Continuous.WithBurst.
type Refill int64

const (
	FixedWindow Refill = 0
	Continuous  Refill = -1
)

// WithBurst makes a Continuous refill whose bucket holds only what refills in d, at least one unit. d is more than 0;
// longer than the window means the whole window. For the named limits it bounds the minute limits; buckets of a day
// always hold the day's worth, because bursts of seconds mean nothing to them.
//
// A job whose estimate is above what the bucket holds can never run: give token limits a burst above the largest job.
func (r Refill) WithBurst(d time.Duration) Refill {
	if r == FixedWindow {
		return FixedWindow
	}
	if d <= 0 {
		return invalidRefill
	}
	return Refill(d)
}

const invalidRefill Refill = math.MinInt64

func (r Refill) String() string {
	switch {
	case r == FixedWindow:
		return "FixedWindow"
	case r == Continuous:
		return "Continuous"
	case r > 0:
		return "Continuous.WithBurst(" + time.Duration(r).String() + ")"
	}
	return "invalid Refill"
}

// JobType is a class of jobs: what one is estimated to use, what share of every model the class has, and how long a
// job waits for each model before it moves on.
type JobType[M ~string] struct {
	// EstimatedTokens is the total, reserved in every token limit. Where input and output are limited apart, give the
	// next two as well or instead: then the input limits reserve one and the output limits the other. A total is reserved as
	// it is; CountTokens applies only to a split estimate without one. A type without any estimate reserves no tokens: they
	// are charged when a job ends, possibly beyond the limit.
	EstimatedTokens                             int64
	EstimatedInputTokens, EstimatedOutputTokens int64

	// EstimatedRequests that one job sends. Default 1.
	EstimatedRequests int64

	// EstimatedMemory that one running job needs, in bytes. 0: memory does not limit the type.
	EstimatedMemory int64

	// Ratio is the type's share of every model, from 0 to 1. 0: an equal part of what the others leave. All ratios
	// together are at most 1; if they are less, the rest stays unused. A single job type has all of every model, whatever
	// its ratio.
	Ratio float64

	// FixedRatio keeps the ratio as it is. Otherwise it follows the load, see RatioConfig.
	FixedRatio bool

	// MaxWait is how long a job waits for each model before it tries the next. 0: not at all; math.MaxInt64: for ever.
	// Models without an entry: to the next minute and five seconds more, so that the next window can be used. So give
	// models that have a good fallback a short wait or none.
	MaxWait map[M]time.Duration
}

// MemoryConfig bounds the memory of all running jobs together, by their JobType.EstimatedMemory. It is always local
// to the process.
type MemoryConfig struct {
	// Limit in bytes. 0: what GOMEMLIMIT, the cgroup (v1 or v2) or the machine leaves to jobs, whichever is least,
	// detected again every RefreshInterval.
	Limit int64

	// Share of the limit that jobs may use, above 0 and at most 1. Default 0.8.
	Share float64

	// RefreshInterval of the detection while jobs with a memory estimate come. Default 5 s.
	RefreshInterval time.Duration
}

// RatioConfig says how job types' ratios follow the load. In every cycle types under LowLoad give a part of their ratio
// and types over HighLoad receive it. Types with FixedRatio take no part.
type RatioConfig struct {
	HighLoad    float64       // a type above it receives; default 0.7
	LowLoad     float64       // a type below it gives; default 0.3
	MaxChange   float64       // most that one ratio changes in a cycle; default 0.2
	MinRatio    float64       // what a giving type keeps; default 0.01
	Interval    time.Duration // a cycle at least this often while jobs come or wait; default 5 s
	Settlements int           // and a cycle after this many settled jobs; default 10
}

// Defaults of the configuration.
const (
	DefaultMemoryShare           = 0.8
	DefaultMemoryRefreshInterval = 5 * time.Second
	DefaultHighLoad              = 0.7
	DefaultLowLoad               = 0.3
	DefaultMaxChange             = 0.2
	DefaultMinRatio              = 0.01
	DefaultRatioInterval         = 5 * time.Second
	DefaultRatioSettlements      = 10
	defaultWaitAfterMinute       = 5 * time.Second
	shortestWindow               = time.Millisecond
	shortestInterval             = time.Millisecond
	longestWindow                = 366 * 24 * time.Hour
)

func (c RatioConfig) withDefaults() RatioConfig {
	return RatioConfig{
		HighLoad:    cmp.Or(c.HighLoad, DefaultHighLoad),
		LowLoad:     cmp.Or(c.LowLoad, DefaultLowLoad),
		MaxChange:   cmp.Or(c.MaxChange, DefaultMaxChange),
		MinRatio:    cmp.Or(c.MinRatio, DefaultMinRatio),
		Interval:    cmp.Or(c.Interval, DefaultRatioInterval),
		Settlements: cmp.Or(c.Settlements, DefaultRatioSettlements),
	}
}

func (c MemoryConfig) withDefaults() MemoryConfig {
	return MemoryConfig{
		Limit:           c.Limit,
		Share:           cmp.Or(c.Share, DefaultMemoryShare),
		RefreshInterval: cmp.Or(c.RefreshInterval, DefaultMemoryRefreshInterval),
	}
}

// faults collects everything that is wrong with a configuration.
type faults []error

func (f *faults) add(field, format string, args ...any) {
	*f = append(*f, &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)})
}

func (f *faults) amount(field string, n int64) {
	if problem := amountProblem(n); problem != "" {
		f.add(field, "%s", problem)
	}
}

func amountProblem(n int64) string {
	switch {
	case n < 0:
		return fmt.Sprintf("must not be negative, is %d", n)
	case n > MaxAmount:
		return fmt.Sprintf("must be at most MaxAmount (2^46 = %d), is %d", int64(MaxAmount), n)
	}
	return ""
}

func (f *faults) interval(field string, d time.Duration) {
	if d < 0 || d > 0 && d < shortestInterval {
		f.add(field, "must be at least %s, or 0 for the default, is %s", shortestInterval, d)
	}
}

func (f *faults) fraction(field string, x float64) {
	if !(x >= 0 && x <= 1) { // also NaN
		f.add(field, "must be from 0 to 1, is %g", x)
	}
}

// Validate reports every fault of the configuration at once: nil, or a *FieldError for each, joined. New calls it.
func (c Config[M]) Validate() error {
	var f faults
	known := c.validateModels(&f)
	c.validateJobTypes(&f, known)

	if c.Memory.Limit < 0 {
		f.add("Memory.Limit", "must not be negative, is %d; 0 detects it", c.Memory.Limit)
	}
	f.fraction("Memory.Share", c.Memory.Share)
	f.interval("Memory.RefreshInterval", c.Memory.RefreshInterval)
	r := c.Ratios.withDefaults()
	f.fraction("Ratios.HighLoad", r.HighLoad)
	f.fraction("Ratios.LowLoad", r.LowLoad)
	if r.LowLoad > r.HighLoad {
		f.add("Ratios.LowLoad", "must not be above Ratios.HighLoad (%g), is %g", r.HighLoad, r.LowLoad)
	}
	f.fraction("Ratios.MaxChange", r.MaxChange)
	f.fraction("Ratios.MinRatio", r.MinRatio)
	f.interval("Ratios.Interval", c.Ratios.Interval)
	if r.Settlements < 0 {
		f.add("Ratios.Settlements", "must not be negative, is %d", r.Settlements)
	}
	return errors.Join(f...)
}

func (c Config[M]) validateModels(f *faults) (known map[M]int) {
	known = make(map[M]int, len(c.Models))
	if len(c.Models) == 0 {
		f.add("Models", "name at least one model")
	}
	for i, m := range c.Models {
		path := fmt.Sprintf("Models[%d]", i)
		if m.ID == "" {
			f.add(path+".ID", "must not be empty")
		} else if j, ok := known[m.ID]; ok {
			f.add(path+".ID", "%q is already the ID of Models[%d]", string(m.ID), j)
		} else {
			known[m.ID] = i
		}
		m.Limits.validate(f, path+".Limits")
		for _, price := range []struct {
			field string
			usd   float64
		}{{".Pricing.Input", m.Pricing.Input}, {".Pricing.Cached", m.Pricing.Cached}, {".Pricing.Output", m.Pricing.Output}} {
			if !(price.usd >= 0 && price.usd <= math.MaxFloat64) { // also NaN
				f.add(path+price.field, "must be 0 or more and finite, is %g", price.usd)
			}
		}
		f.amount(path+".MinCapacity", int64(m.MinCapacity))
		f.amount(path+".MaxCapacity", int64(m.MaxCapacity))
		if m.MaxCapacity > 0 && m.MinCapacity > m.MaxCapacity {
			f.add(path+".MinCapacity", "must not be above MaxCapacity (%d), is %d", m.MaxCapacity, m.MinCapacity)
		}
	}
	return known
}

func (l Limits) validate(f *faults, path string) {
	for _, n := range l.named() {
		f.amount(path+"."+n.field, n.max)
	}
	f.amount(path+".MaxConcurrent", l.MaxConcurrent)
	if l.Refill < Continuous {
		f.add(path+".Refill", "must be FixedWindow, Continuous or Continuous.WithBurst of more than 0")
	}
	for i, custom := range l.Custom {
		path := fmt.Sprintf("%s.Custom[%d]", path, i)
		if resourceIndex(custom.Resource) < 0 {
			f.add(path+".Resource", "must be one of %v, is %q", resources, custom.Resource)
		}
		if custom.Per < shortestWindow || custom.Per > longestWindow {
			f.add(path+".Per", "must be from %s to %s, is %s", shortestWindow, longestWindow, custom.Per)
		}
		f.amount(path+".Max", custom.Max)
		if custom.Max == 0 {
			f.add(path+".Max", "must be 1 or more; leave the limit out if there is none")
		}
		if custom.Refill < Continuous {
			f.add(path+".Refill", "must be FixedWindow, Continuous or Continuous.WithBurst of more than 0")
		}
	}
}

func (c Config[M]) validateJobTypes(f *faults, known map[M]int) {
	if len(c.JobTypes) == 0 {
		f.add("JobTypes", "name at least one job type")
	}
	sum, unset := 0.0, []string(nil)
	for _, name := range slices.Sorted(maps.Keys(c.JobTypes)) {
		t := c.JobTypes[name]
		path := fmt.Sprintf("JobTypes[%q]", name)
		if name == "" {
			f.add(path, "the name must not be empty")
		}
		f.amount(path+".EstimatedTokens", t.EstimatedTokens)
		f.amount(path+".EstimatedInputTokens", t.EstimatedInputTokens)
		f.amount(path+".EstimatedOutputTokens", t.EstimatedOutputTokens)
		f.amount(path+".EstimatedRequests", t.EstimatedRequests)
		f.amount(path+".EstimatedMemory", t.EstimatedMemory)
		if split := satAdd(t.EstimatedInputTokens, t.EstimatedOutputTokens); t.EstimatedTokens > 0 && split > t.EstimatedTokens {
			f.add(path+".EstimatedTokens", "is the total and must not be less than input and output together (%d), is %d", split, t.EstimatedTokens)
		}
		f.fraction(path+".Ratio", t.Ratio)
		if t.Ratio == 0 {
			unset = append(unset, name)
		} else if t.Ratio > 0 {
			sum += t.Ratio
		}
		for _, model := range slices.Sorted(maps.Keys(t.MaxWait)) {
			path := fmt.Sprintf("%s.MaxWait[%q]", path, string(model))
			if _, ok := known[model]; !ok {
				f.add(path, "unknown model; the models are %s", quoted(c.modelNames()))
			}
			if wait := t.MaxWait[model]; wait < 0 {
				f.add(path, "must not be negative, is %s; 0 means do not wait", wait)
			}
		}
	}
	switch {
	case sum > 1+ratioTolerance:
		f.add("JobTypes", "the ratios sum to %g, must be at most 1", sum)
	case len(unset) > 0 && sum > 1-ratioTolerance:
		f.add("JobTypes", "the ratios already sum to 1 and leave nothing to %s: lower some, or set all", quoted(unset))
	}
}

// ratioTolerance allows for float error where ratios are added up and slots are rounded down.
const ratioTolerance = 1e-9

func (c Config[M]) modelNames() (names []string) {
	for _, m := range c.Models {
		if name := string(m.ID); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// limitKind says which field of Limits, and of ModelStats, a dimension belongs to.
type limitKind int

const (
	requestsPerMinute limitKind = iota
	requestsPerDay
	tokensPerMinute
	tokensPerDay
	inputTokensPerMinute
	outputTokensPerMinute
	customLimit
)

type namedLimit struct {
	kind     limitKind
	field    string
	resource Resource
	per      time.Duration
	max      int64
}

func (l Limits) named() [customLimit]namedLimit {
	const day = 24 * time.Hour
	return [...]namedLimit{
		{requestsPerMinute, "RequestsPerMinute", Requests, time.Minute, l.RequestsPerMinute},
		{requestsPerDay, "RequestsPerDay", Requests, day, l.RequestsPerDay},
		{tokensPerMinute, "TokensPerMinute", Tokens, time.Minute, l.TokensPerMinute},
		{tokensPerDay, "TokensPerDay", Tokens, day, l.TokensPerDay},
		{inputTokensPerMinute, "InputTokensPerMinute", InputTokens, time.Minute, l.InputTokensPerMinute},
		{outputTokensPerMinute, "OutputTokensPerMinute", OutputTokens, time.Minute, l.OutputTokensPerMinute},
	}
}

// dimensions turns limits into the vector that everything else works on, shortest window first.
func (l Limits) dimensions() []dimension {
	var dims []dimension
	add := func(kind limitKind, custom int, r Resource, per time.Duration, limit int64, refill Refill) {
		w := window{max: limit, per: int64(per)}
		if refill != FixedWindow {
			w.rate = limit
			if refill > 0 && time.Duration(refill) < per {
				burst, _ := mulDiv(limit, int64(refill), 0, int64(per))
				w.max = max(burst, 1)
			}
		}
		dims = append(dims, dimension{window: w, kind: kind, custom: custom, resource: resourceIndex(r)})
	}
	for _, n := range l.named() {
		refill := l.Refill
		if refill > 0 && n.per > time.Minute {
			refill = Continuous
		}
		if n.max > 0 {
			add(n.kind, 0, n.resource, n.per, n.max, refill)
		}
	}
	for i, c := range l.Custom {
		add(customLimit, i, c.Resource, c.Per, c.Max, c.Refill)
	}
	slices.SortStableFunc(dims, func(a, b dimension) int { return cmp.Compare(a.per, b.per) })
	return dims
}
