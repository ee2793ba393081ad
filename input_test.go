package llmrate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// Bad input is an error that names the field or the number: never a panic, never a changed state, nothing lost.

// inputConfig is one without a fault, for a test to put one in.
func inputConfig() config {
	return config{
		Models: []modelConfig{
			{ID: "a", Limits: limits{
				RequestsPerMinute: 10, TokensPerMinute: 10_000, MaxConcurrent: 5,
				Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 5}},
			}},
			{ID: "b", Limits: limits{TokensPerMinute: 10_000}},
		},
		JobTypes: jobTypes{"x": {EstimatedTokens: 1_000, Ratio: 0.5}, "y": {EstimatedTokens: 2_000}},
	}
}

// inputJobType changes job type "x".
func inputJobType(cfg *config, change func(*jobType)) {
	x := cfg.JobTypes["x"]
	change(&x)
	cfg.JobTypes["x"] = x
}

// inputFaults are the fields that a joined error complains about, in order, and all that is said.
func inputFaults(t *testing.T, err error) (fields []string) {
	t.Helper()
	var walk func(error)
	walk = func(err error) {
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				walk(e)
			}
			return
		}
		fault, ok := errors.AsType[*llmrate.FieldError](err)
		require.True(t, ok, "%T: %v", err, err)
		require.NotEmpty(t, fault.Problem)
		require.Contains(t, err.Error(), fault.Field)
		fields = append(fields, fault.Field)
	}
	if err != nil {
		walk(err)
	}
	return fields
}

func TestInputConfigFaults(t *testing.T) {
	const absurd = llmrate.MaxAmount + 1
	nan, inf := math.NaN(), math.Inf(1)
	type fault struct {
		field string
		text  string // also in the message
		put   func(*config)
	}
	faults := []fault{
		{"Models", "at least one", func(c *config) { c.Models = nil }},
		{"Models[1].ID", "empty", func(c *config) { c.Models[1].ID = "" }},
		{"Models[1].ID", `"a"`, func(c *config) { c.Models[1].ID = "a" }},
		{"Models[0].Limits.Refill", "", func(c *config) { c.Models[0].Limits.Refill = llmrate.Continuous.WithBurst(0) }},
		{"Models[0].Limits.Refill", "", func(c *config) { c.Models[0].Limits.Refill = llmrate.Continuous.WithBurst(-time.Second) }},
		{"Models[0].Limits.Refill", "", func(c *config) { c.Models[0].Limits.Refill = -77 }},
		{"Models[0].Limits.Custom[0].Resource", "bananas", func(c *config) { c.Models[0].Limits.Custom[0].Resource = "bananas" }},
		{"Models[0].Limits.Custom[0].Resource", "tokens", func(c *config) { c.Models[0].Limits.Custom[0].Resource = "" }},
		{"Models[0].Limits.Custom[0].Per", "0s", func(c *config) { c.Models[0].Limits.Custom[0].Per = 0 }},
		{"Models[0].Limits.Custom[0].Per", "-1m", func(c *config) { c.Models[0].Limits.Custom[0].Per = -minute }},
		{"Models[0].Limits.Custom[0].Per", "1µs", func(c *config) { c.Models[0].Limits.Custom[0].Per = time.Microsecond }},
		{"Models[0].Limits.Custom[0].Per", "", func(c *config) { c.Models[0].Limits.Custom[0].Per = math.MaxInt64 }},
		{"Models[0].Limits.Custom[0].Max", "1 or more", func(c *config) { c.Models[0].Limits.Custom[0].Max = 0 }},
		{"Models[0].Limits.Custom[0].Max", "-4", func(c *config) { c.Models[0].Limits.Custom[0].Max = -4 }},
		{"Models[0].Limits.Custom[0].Max", fmt.Sprint(absurd), func(c *config) { c.Models[0].Limits.Custom[0].Max = absurd }},
		{"Models[0].Limits.Custom[0].Refill", "", func(c *config) { c.Models[0].Limits.Custom[0].Refill = -2 }},
		{"Models[1].MinCapacity", "-1", func(c *config) { c.Models[1].MinCapacity = -1 }},
		{"Models[1].MaxCapacity", "-1", func(c *config) { c.Models[1].MaxCapacity = -1 }},
		{"Models[1].MaxCapacity", fmt.Sprint(absurd), func(c *config) { c.Models[1].MaxCapacity = absurd }},
		{"Models[1].MinCapacity", "7", func(c *config) { c.Models[1].MinCapacity, c.Models[1].MaxCapacity = 7, 6 }},

		{"JobTypes", "at least one", func(c *config) { c.JobTypes = nil }},
		{`JobTypes[""]`, "empty", func(c *config) { c.JobTypes[""] = jobType{} }},
		{`JobTypes["x"].EstimatedTokens`, "1500", func(c *config) {
			inputJobType(c, func(x *jobType) { x.EstimatedInputTokens, x.EstimatedOutputTokens = 1_000, 500 })
		}},
		{`JobTypes["x"].MaxWait["nowhere"]`, `"a", "b"`, func(c *config) {
			inputJobType(c, func(x *jobType) { x.MaxWait = maxWait{"a": 1, "nowhere": 1} })
		}},
		{`JobTypes["x"].MaxWait["a"]`, "-1s", func(c *config) {
			inputJobType(c, func(x *jobType) { x.MaxWait = maxWait{"a": -time.Second} })
		}},
		{"JobTypes", "1.1", func(c *config) { c.JobTypes["y"] = jobType{Ratio: 0.6} }},
		{"JobTypes", `"y"`, func(c *config) { inputJobType(c, func(x *jobType) { x.Ratio = 1 }) }}, // nothing is left for y

		{"Memory.Limit", "-1", func(c *config) { c.Memory.Limit = -1 }},
		{"Memory.RefreshInterval", "-1s", func(c *config) { c.Memory.RefreshInterval = -time.Second }},
		{"Ratios.LowLoad", "0.8", func(c *config) { c.Ratios.LowLoad = 0.8 }},
		{"Ratios.LowLoad", "0.2", func(c *config) { c.Ratios.HighLoad = 0.2 }},
		{"Ratios.Interval", "-1s", func(c *config) { c.Ratios.Interval = -time.Second }},
		{"Ratios.Settlements", "-3", func(c *config) { c.Ratios.Settlements = -3 }},
	}
	for field, get := range map[string]func(*config) *int64{
		"Models[0].Limits.RequestsPerMinute":     func(c *config) *int64 { return &c.Models[0].Limits.RequestsPerMinute },
		"Models[0].Limits.RequestsPerDay":        func(c *config) *int64 { return &c.Models[0].Limits.RequestsPerDay },
		"Models[1].Limits.TokensPerMinute":       func(c *config) *int64 { return &c.Models[1].Limits.TokensPerMinute },
		"Models[1].Limits.TokensPerDay":          func(c *config) *int64 { return &c.Models[1].Limits.TokensPerDay },
		"Models[1].Limits.InputTokensPerMinute":  func(c *config) *int64 { return &c.Models[1].Limits.InputTokensPerMinute },
		"Models[1].Limits.OutputTokensPerMinute": func(c *config) *int64 { return &c.Models[1].Limits.OutputTokensPerMinute },
		"Models[0].Limits.MaxConcurrent":         func(c *config) *int64 { return &c.Models[0].Limits.MaxConcurrent },
	} {
		for _, n := range []int64{-1, math.MinInt64, absurd, math.MaxInt64} {
			faults = append(faults, fault{field, fmt.Sprint(n), func(c *config) { *get(c) = n }})
		}
	}
	for field, get := range map[string]func(*jobType) *int64{
		"EstimatedTokens":       func(x *jobType) *int64 { return &x.EstimatedTokens },
		"EstimatedInputTokens":  func(x *jobType) *int64 { x.EstimatedTokens = 0; return &x.EstimatedInputTokens },
		"EstimatedOutputTokens": func(x *jobType) *int64 { x.EstimatedTokens = 0; return &x.EstimatedOutputTokens },
		"EstimatedRequests":     func(x *jobType) *int64 { return &x.EstimatedRequests },
		"EstimatedMemory":       func(x *jobType) *int64 { return &x.EstimatedMemory },
	} {
		for _, n := range []int64{-1, math.MinInt64, absurd, math.MaxInt64} {
			faults = append(faults, fault{`JobTypes["x"].` + field, fmt.Sprint(n), func(c *config) {
				inputJobType(c, func(x *jobType) { *get(x) = n })
			}})
		}
	}
	for field, set := range map[string]func(*config, float64){
		"Models[0].Pricing.Input":  func(c *config, x float64) { c.Models[0].Pricing.Input = x },
		"Models[0].Pricing.Cached": func(c *config, x float64) { c.Models[0].Pricing.Cached = x },
		"Models[0].Pricing.Output": func(c *config, x float64) { c.Models[0].Pricing.Output = x },
		`JobTypes["x"].Ratio`: func(c *config, x float64) {
			inputJobType(c, func(j *jobType) { j.Ratio = x })
		},
		"Memory.Share":     func(c *config, x float64) { c.Memory.Share = x },
		"Ratios.HighLoad":  func(c *config, x float64) { c.Ratios.HighLoad = x },
		"Ratios.LowLoad":   func(c *config, x float64) { c.Ratios.LowLoad = x },
		"Ratios.MaxChange": func(c *config, x float64) { c.Ratios.MaxChange = x },
		"Ratios.MinRatio":  func(c *config, x float64) { c.Ratios.MinRatio = x },
	} {
		values := []float64{nan, inf, -inf, -0.1}
		if !strings.Contains(field, "Pricing") {
			values = append(values, 1.1)
		}
		for _, x := range values {
			faults = append(faults, fault{field, fmt.Sprint(x), func(c *config) { set(c, x) }})
		}
	}

	require.NoError(t, inputConfig().Validate())
	for _, f := range faults {
		t.Run(fmt.Sprintf("%s %s", f.field, f.text), func(t *testing.T) {
			cfg := inputConfig()
			f.put(&cfg)
			err := cfg.Validate()
			require.Contains(t, inputFaults(t, err), f.field)
			require.ErrorContains(t, err, f.text)
			l, newErr := llmrate.New(t.Context(), cfg)
			require.Nil(t, l)
			require.EqualError(t, newErr, err.Error())
		})
	}
}

func TestInputValidateReportsEveryFaultAtOnce(t *testing.T) {
	cfg := config{
		Models: []modelConfig{
			{ID: "", Limits: limits{TokensPerMinute: -1, MaxConcurrent: -2}},
			{ID: "m", Pricing: llmrate.Pricing{Output: math.NaN()}},
			{ID: "m", MinCapacity: 2, MaxCapacity: 1, Limits: limits{Custom: []llmrate.CustomLimit{{}}}},
		},
		JobTypes: jobTypes{
			"x": {EstimatedTokens: -1, EstimatedMemory: -1, Ratio: 2, MaxWait: maxWait{"n": -1}},
			"y": {Ratio: math.Inf(-1)},
		},
		Memory: llmrate.MemoryConfig{Limit: -1, Share: 3},
		Ratios: llmrate.RatioConfig{MinRatio: -1, Settlements: -1},
	}
	require.ElementsMatch(t, []string{
		"Models[0].ID", "Models[0].Limits.TokensPerMinute", "Models[0].Limits.MaxConcurrent",
		"Models[1].Pricing.Output",
		"Models[2].ID", "Models[2].MinCapacity",
		"Models[2].Limits.Custom[0].Resource", "Models[2].Limits.Custom[0].Per", "Models[2].Limits.Custom[0].Max",
		`JobTypes["x"].EstimatedTokens`, `JobTypes["x"].EstimatedMemory`, `JobTypes["x"].Ratio`,
		`JobTypes["x"].MaxWait["n"]`, `JobTypes["x"].MaxWait["n"]`, // unknown and negative
		`JobTypes["y"].Ratio`, "JobTypes", // the sum
		"Memory.Limit", "Memory.Share", "Ratios.MinRatio", "Ratios.Settlements",
	}, inputFaults(t, cfg.Validate()))

	require.ElementsMatch(t, []string{"Models", "JobTypes"}, inputFaults(t, config{}.Validate()))
}

// What looks odd but is not wrong.
func TestInputAcceptedConfigurations(t *testing.T) {
	for name, change := range map[string]func(*config){
		"largest limits": func(c *config) {
			c.Models[0].Limits = limits{
				RequestsPerMinute: llmrate.MaxAmount, RequestsPerDay: llmrate.MaxAmount, TokensPerMinute: llmrate.MaxAmount,
				TokensPerDay: llmrate.MaxAmount, InputTokensPerMinute: llmrate.MaxAmount, OutputTokensPerMinute: llmrate.MaxAmount,
				MaxConcurrent: llmrate.MaxAmount, Refill: llmrate.Continuous,
			}
		},
		"nothing limited":         func(c *config) { c.Models[0].Limits = limits{} },
		"burst beyond the window": func(c *config) { c.Models[0].Limits.Refill = llmrate.Continuous.WithBurst(10 * day) },
		"float error in the sum": func(c *config) {
			c.JobTypes = jobTypes{}
			for i := range 10 {
				c.JobTypes[string(rune('a'+i))] = jobType{Ratio: 0.1}
			}
			c.JobTypes["x"] = c.JobTypes["a"]
			delete(c.JobTypes, "a")
		},
		"ratios that sum to less than 1": func(c *config) { c.JobTypes = jobTypes{"x": {Ratio: 0.1}, "y": {Ratio: 0.1}} },
		"longest max wait":               func(c *config) { inputJobType(c, func(x *jobType) { x.MaxWait = maxWait{"a": math.MaxInt64} }) },
		"huge memory":                    func(c *config) { c.Memory = llmrate.MemoryConfig{Limit: math.MaxInt64, Share: 1} },
		"huge memory, in use": func(c *config) {
			c.Memory = llmrate.MemoryConfig{Limit: math.MaxInt64, Share: 1}
			inputJobType(c, func(x *jobType) { x.EstimatedMemory = llmrate.MaxAmount })
		},
		"ratio adaptation at its extremes": func(c *config) {
			c.Ratios = llmrate.RatioConfig{HighLoad: 1, LowLoad: 1, MaxChange: 1, MinRatio: 1, Interval: math.MaxInt64, Settlements: math.MaxInt}
		},
	} {
		scenario(t, name, func(t *testing.T) {
			cfg := inputConfig()
			change(&cfg)
			require.NoError(t, cfg.Validate())
			l := newLimiter(t, cfg)
			for range 3 {
				res, err := l.Run(t.Context(), "x", job(time.Second, tokens(1)))
				require.NoError(t, err)
				require.Equal(t, "a", res.Model)
				require.Zero(t, res.Waited)
				time.Sleep(minute)
			}
		})
	}
}

// New takes copies.
func TestInputConfigChangedAfterNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := inputConfig()
		inputJobType(&cfg, func(x *jobType) { x.MaxWait = maxWait{"a": 0, "b": 0} })
		l := newLimiter(t, cfg)
		cfg.Models[0].ID = "changed"
		cfg.Models[0].Limits.Custom[0].Max = 1_000
		cfg.Models[1].Limits.TokensPerMinute = 1
		cfg.JobTypes["x"].MaxWait["a"] = time.Hour
		delete(cfg.JobTypes, "y")
		st := l.Stats()
		require.Len(t, st.JobTypes, 2)
		require.EqualValues(t, 5, st.Models["a"].Custom[0].Limit)
		require.EqualValues(t, 10_000, st.Models["b"].TokensPerMinute.Limit)
		require.Equal(t, 2+5, fill(t, l, "x"), "half of the 5 requests on a and of the 10,000 tokens on b")
		_, err := l.Acquire(t.Context(), "x")
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		require.Zero(t, elapsed())
	})
}

// inputUnchanged makes calls that must fail, and checks that they leave the limiter as it was.
func inputUnchanged(t *testing.T, l *limiter, calls func()) {
	t.Helper()
	before := l.Stats()
	calls()
	require.Equal(t, before, l.Stats())
}

// inputRefuse is a job that must not run.
func inputRefuse(t *testing.T) jobFunc {
	return func(context.Context, llmrate.Attempt[string]) (usage, error) {
		t.Error("must not run")
		return usage{}, nil
	}
}

// inputEach calls every entry point that takes a job type and options.
func inputEach(ctx context.Context, t *testing.T, l *limiter, jobType string, check func(error), opts ...llmrate.RunOption) {
	t.Helper()
	nothing := func(res llmrate.Result[string]) {
		t.Helper()
		require.Empty(t, res.Model)
		require.Empty(t, res.Attempts)
		require.Zero(t, res.Usage)
		require.Zero(t, res.Waited)
	}
	res, err := l.Run(ctx, jobType, inputRefuse(t), opts...)
	nothing(res)
	check(err)
	_, res, err = llmrate.Do(ctx, l, jobType, func(context.Context, llmrate.Attempt[string]) (int, usage, error) {
		t.Error("must not run")
		return 0, usage{}, nil
	}, opts...)
	nothing(res)
	check(err)
	r, err := l.Acquire(ctx, jobType, opts...)
	require.Nil(t, r)
	check(err)
	r, err = l.TryAcquire(ctx, jobType, opts...)
	require.Nil(t, r)
	check(err)
}

func TestInputArguments(t *testing.T) {
	field := func(name string, texts ...string) func(*testing.T, error) {
		return func(t *testing.T, err error) {
			t.Helper()
			fault, ok := errors.AsType[*llmrate.FieldError](err)
			require.True(t, ok, "%T: %v", err, err)
			require.Equal(t, name, fault.Field)
			for _, text := range texts {
				require.ErrorContains(t, err, text)
			}
		}
	}
	is := func(target error, texts ...string) func(*testing.T, error) {
		return func(t *testing.T, err error) {
			t.Helper()
			require.ErrorIs(t, err, target)
			for _, text := range texts {
				require.ErrorContains(t, err, text)
			}
		}
	}
	var nilContext context.Context
	cancelled, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	const absurd = llmrate.MaxAmount + 1

	for name, c := range map[string]struct {
		ctx     context.Context // default: one that lives
		jobType string          // default: one that exists
		opts    llmrate.RunOption
		check   func(*testing.T, error)
	}{
		"unknown job type":  {jobType: "z", check: is(llmrate.ErrUnknownJobType, `"z"`, `"x", "y"`)},
		"unknown model":     {opts: llmrate.WithModels("a", "c"), check: is(llmrate.ErrUnknownModel, `"c"`, `"a", "b"`)},
		"no model":          {opts: llmrate.WithModels[string](), check: field("WithModels")},
		"a model twice":     {opts: llmrate.WithModels("a", "b", "a"), check: field("WithModels[2]", `"a"`)},
		"negative max wait": {opts: llmrate.WithMaxWait(-1), check: field("WithMaxWait", "-1ns")},
		"negative requests": {opts: llmrate.WithEstimate(usage{Requests: -1}), check: field("WithEstimate.Requests", "-1")},
		"negative input":    {opts: llmrate.WithEstimate(usage{InputTokens: -5}), check: field("WithEstimate.InputTokens", "-5")},
		"negative cached": {
			opts: llmrate.WithEstimate(usage{InputTokens: 9, CachedTokens: -5}), check: field("WithEstimate.CachedTokens", "-5"),
		},
		"least output":              {opts: llmrate.WithEstimate(usage{OutputTokens: math.MinInt64}), check: field("WithEstimate.OutputTokens")},
		"absurd estimate":           {opts: llmrate.WithEstimate(usage{OutputTokens: absurd}), check: field("WithEstimate.OutputTokens", fmt.Sprint(absurd))},
		"nil context":               {ctx: nilContext, check: field("ctx")},
		"ended context":             {ctx: cancelled, check: is(gone)},
		"ended context and no wait": {ctx: cancelled, opts: llmrate.WithMaxWait(0), check: is(gone)},
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, inputConfig())
			ctx, jobType := c.ctx, "x"
			if ctx == nil && name != "nil context" {
				ctx = t.Context()
			}
			if c.jobType != "" {
				jobType = c.jobType
			}
			inputUnchanged(t, l, func() {
				inputEach(ctx, t, l, jobType, func(err error) { c.check(t, err) }, c.opts)
			})
			require.Zero(t, elapsed())
		})
	}

	scenario(t, "the others", func(t *testing.T) {
		l := newLimiter(t, inputConfig())
		inputUnchanged(t, l, func() {
			inputEach(t.Context(), t, l, "", func(err error) { is(llmrate.ErrUnknownJobType, `""`, `"x", "y"`)(t, err) })
			_, err := l.Run(t.Context(), "x", nil)
			field("fn")(t, err)
			_, _, err = llmrate.Do[int](t.Context(), l, "x", nil)
			field("fn")(t, err)
			field("ctx")(t, l.Close(nilContext))
			model, ok := l.Available("z")
			require.False(t, ok)
			require.Empty(t, model)
		})
		none, err := llmrate.New(nilContext, inputConfig())
		require.Nil(t, none)
		field("ctx")(t, err)
		none, err = llmrate.New(cancelled, inputConfig())
		require.Nil(t, none)
		require.ErrorIs(t, err, gone)
		r := acquire(t, l, "x", llmrate.RunOption{}, llmrate.WithJobID("")) // neither changes anything
		require.NotEmpty(t, r.JobID())
	})
}

// A limiter that New has not made, and a reservation that Acquire has not.
func TestInputZeroLimiterAndReservation(t *testing.T) {
	var none *limiter
	for name, l := range map[string]*limiter{"zero": {}, "nil": none} {
		t.Run(name, func(t *testing.T) {
			check := func(err error) {
				t.Helper()
				_, ok := errors.AsType[*llmrate.FieldError](err)
				require.True(t, ok, "%T: %v", err, err)
				require.ErrorContains(t, err, "New")
			}
			inputEach(t.Context(), t, l, "x", check)
			check(l.Close(t.Context()))
			_, ok := l.Available("x")
			require.False(t, ok)
			require.Empty(t, l.Stats())
		})
	}
	var nothing *llmrate.Reservation[string]
	for name, r := range map[string]*llmrate.Reservation[string]{"zero": {}, "nil": nothing} {
		t.Run(name+" reservation", func(t *testing.T) {
			_, ok := errors.AsType[*llmrate.FieldError](r.Settle(tokens(1)))
			require.True(t, ok)
			r.Release()
			require.Empty(t, r.Model())
			require.Empty(t, r.JobID())
			require.Empty(t, r.Estimate())
		})
	}
}

// A usage out of range is an error; the estimate stays charged, as what was used is not known.
func TestInputUsageOutOfRange(t *testing.T) {
	const absurd = llmrate.MaxAmount + 1
	for field, used := range map[string]usage{
		"Usage.Requests":     {Requests: -1, InputTokens: 10},
		"Usage.InputTokens":  {Requests: 1, InputTokens: -10},
		"Usage.CachedTokens": {Requests: 1, InputTokens: 1, CachedTokens: math.MinInt64},
		"Usage.OutputTokens": {Requests: 1, InputTokens: 1, OutputTokens: absurd},
	} {
		scenario(t, field, func(t *testing.T) {
			l := newLimiter(t, inputConfig())
			check := func(err error) {
				t.Helper()
				fault, ok := errors.AsType[*llmrate.FieldError](err)
				require.True(t, ok, "%T: %v", err, err)
				require.Equal(t, field, fault.Field)
			}
			for i, end := range []func() (usage, error){
				func() (usage, error) { return used, nil },
				func() (usage, error) { return used, errEnding },
				func() (usage, error) { return usage{}, llmrate.Reject(errEnding, used) },
				func() (usage, error) { return usage{}, llmrate.Delegate(errEnding, used) },
			} {
				res, err := l.Run(t.Context(), "x", func(context.Context, llmrate.Attempt[string]) (usage, error) { return end() })
				check(err)
				if i > 0 {
					require.ErrorIs(t, err, errEnding, "the function's error is not lost")
				}
				require.Len(t, res.Attempts, 1)
				require.False(t, res.Attempts[0].UsageKnown)
				require.Zero(t, res.Usage)
				require.Zero(t, res.Cost)
				st := l.Stats()
				require.EqualValues(t, 1_000*(i+1), st.Models["a"].TokensPerMinute.Used)
				require.EqualValues(t, i+1, st.Models["a"].RequestsPerMinute.Used)
				require.Empty(t, st.Jobs)
			}

			sleepUntil(minute)
			r := acquire(t, l, "x")
			inputUnchanged(t, l, func() {
				for range 3 {
					check(r.Settle(used))
				}
			})
			require.Len(t, l.Stats().Jobs, 1, "it is still open")
			require.NoError(t, r.Settle(tokens(7)))
			require.EqualValues(t, 7, l.Stats().Models["a"].TokensPerMinute.Used)
		})
	}
}

func TestInputSettleTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rec := &recorder{}
		cfg := inputConfig()
		cfg.OnEvent = rec.record
		l := newLimiter(t, cfg)
		b := llmrate.WithModels("b")
		acquire(t, l, "x", b)
		first, second := acquire(t, l, "x", b), acquire(t, l, "x", b)
		require.NoError(t, first.Settle(tokens(600)))
		second.Release()
		require.EqualValues(t, 1_000+600+1_000, l.Stats().Models["b"].TokensPerMinute.Used)
		inputUnchanged(t, l, func() {
			for _, r := range []*llmrate.Reservation[string]{first, second} {
				require.ErrorIs(t, r.Settle(usage{}), llmrate.ErrSettled)
				require.ErrorIs(t, r.Settle(tokens(5_000)), llmrate.ErrSettled)
				r.Release()
			}
		})
		require.Len(t, eventsOf[llmrate.EndedEvent](rec), 2)
		require.Empty(t, eventsOf[llmrate.OverageEvent](rec))
	})
}

// The largest usage, many times over: counters stop at their end instead of turning negative.
func TestInputUsageSaturates(t *testing.T) {
	most := usage{InputTokens: llmrate.MaxAmount, CachedTokens: llmrate.MaxAmount, OutputTokens: llmrate.MaxAmount}
	const n = math.MaxInt64/(3*llmrate.MaxAmount) + 1_000
	for _, refill := range []llmrate.Refill{llmrate.FixedWindow, llmrate.Continuous} {
		scenario(t, refill.String(), func(t *testing.T) {
			l := newLimiter(t, config{
				Models: []modelConfig{{ID: "a", Limits: limits{
					TokensPerMinute: 1_000, TokensPerDay: 1_000, InputTokensPerMinute: 1_000, OutputTokensPerMinute: 1_000, Refill: refill,
				}}},
				JobTypes: jobTypes{"none": {FixedRatio: true}, "one": {EstimatedTokens: 1, FixedRatio: true}},
			})
			held := make([]*llmrate.Reservation[string], n) // they reserve nothing, so that nothing stops them
			for i := range held {
				held[i], _ = l.TryAcquire(t.Context(), "none")
			}
			for i, r := range held {
				if err := r.Settle(most); err != nil {
					t.Fatal(i, err)
				}
			}
			st := l.Stats().Models["a"]
			for _, w := range []llmrate.WindowStats{st.TokensPerMinute, st.TokensPerDay, st.InputTokensPerMinute, st.OutputTokensPerMinute} {
				require.Greater(t, w.Used, int64(llmrate.MaxAmount))
				require.Zero(t, w.Remaining)
				require.Positive(t, w.Limit)
			}
			require.EqualValues(t, math.MaxInt64, st.TokensPerDay.Used)
			requireFull(t, l, "one")
			_, err := l.Acquire(t.Context(), "one", llmrate.WithMaxWait(time.Second))
			require.ErrorIs(t, err, llmrate.ErrNoCapacity)
			time.Sleep(3 * day)
			if refill == llmrate.FixedWindow {
				acquire(t, l, "one")
			} else { // a debt is refilled first, for ages
				requireFull(t, l, "one")
			}
		})
	}
}

// What a job needs more of than a limit has, it will never get: such a model is skipped at once.
func TestInputEstimateAboveALimit(t *testing.T) {
	for name, c := range map[string]struct {
		limits   limits
		job      jobType
		resource string
	}{
		"tokens":            {limits{TokensPerMinute: 999}, jobType{EstimatedTokens: 1_000}, "tokens"},
		"tokens a day":      {limits{TokensPerDay: 999}, jobType{EstimatedTokens: 1_000}, "tokens"},
		"requests":          {limits{RequestsPerMinute: 2}, jobType{EstimatedRequests: 3}, "requests"},
		"requests a day":    {limits{RequestsPerDay: 2}, jobType{EstimatedRequests: 3}, "requests"},
		"input":             {limits{InputTokensPerMinute: 999}, jobType{EstimatedInputTokens: 1_000}, "input_tokens"},
		"output":            {limits{OutputTokensPerMinute: 999}, jobType{EstimatedOutputTokens: 1_000}, "output_tokens"},
		"output by default": {limits{OutputTokensPerMinute: 999}, jobType{EstimatedTokens: 1_000}, "output_tokens"},
		"custom": {
			limits{Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: 10 * time.Second, Max: 2}}}, jobType{EstimatedRequests: 3}, "requests",
		},
		"what a bucket holds": { // 10 a second
			limits{TokensPerMinute: 600, Refill: llmrate.Continuous.WithBurst(time.Second)}, jobType{EstimatedTokens: 11}, "tokens",
		},
		"memory": {limits{}, jobType{EstimatedMemory: 81 * mib}, "memory"}, // 80 % of 100
	} {
		scenario(t, name, func(t *testing.T) {
			var log bytes.Buffer
			c.job.MaxWait = maxWait{"small": time.Hour}
			cfg := config{
				Models:   []modelConfig{{ID: "small", Limits: c.limits}, {ID: "large"}},
				JobTypes: jobTypes{"x": c.job, "y": {EstimatedTokens: 1}},
				Memory:   llmrate.MemoryConfig{Limit: 100 * mib},
				Logger:   slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})),
			}
			l := newLimiter(t, cfg) // is accepted, as single jobs may be smaller
			for _, text := range []string{"x", "small", c.resource} {
				require.Contains(t, log.String(), text)
			}
			require.NotContains(t, log.String(), "jobType=y")

			check := func(err error) {
				t.Helper()
				require.ErrorIs(t, err, llmrate.ErrTooLarge)
				require.NotErrorIs(t, err, llmrate.ErrNoCapacity)
				capacity, ok := errors.AsType[*llmrate.CapacityError](err)
				require.True(t, ok)
				require.NotEmpty(t, capacity.Models)
				for _, s := range capacity.Models {
					require.Equal(t, llmrate.ReasonTooLarge, s.Reason)
					require.Equal(t, c.resource, s.Resource)
					require.Greater(t, s.Needed, s.Limit)
					unit := int64(1)
					if s.Resource == "memory" {
						unit = mib
					}
					require.ErrorContains(t, err, fmt.Sprint(s.Needed/unit))
					require.ErrorContains(t, err, fmt.Sprint(s.Limit/unit))
				}
			}
			inputUnchanged(t, l, func() { inputEach(t.Context(), t, l, "x", check, llmrate.WithModels("small")) })
			require.Zero(t, elapsed())
			if name == "memory" { // is the same on every model
				inputUnchanged(t, l, func() { inputEach(t.Context(), t, l, "x", check) })
				return
			}
			model, ok := l.Available("x")
			require.True(t, ok)
			require.Equal(t, "large", model)
			res, err := l.Run(t.Context(), "x", job(0, tokens(1)))
			require.NoError(t, err)
			require.Equal(t, "large", res.Model)
			require.Zero(t, res.Waited)
			require.Zero(t, elapsed())
			require.Zero(t, l.Stats().Models["small"].JobTypes["x"].Slots)

			res, err = l.Run(t.Context(), "x", job(0, usage{Requests: 1, InputTokens: 1}), llmrate.WithEstimate(usage{Requests: 1, InputTokens: 1}))
			require.NoError(t, err)
			require.Equal(t, "small", res.Model)
		})
	}
	scenario(t, "of this call alone", func(t *testing.T) {
		l := newLimiter(t, inputConfig())
		inputUnchanged(t, l, func() {
			inputEach(t.Context(), t, l, "x", func(err error) { require.ErrorIs(t, err, llmrate.ErrTooLarge) },
				llmrate.WithEstimate(tokens(10_001)))
		})
		r := acquire(t, l, "x", llmrate.WithEstimate(tokens(10_000)))
		require.Equal(t, "a", r.Model())
	})
	scenario(t, "of one model while the other is full", func(t *testing.T) {
		cfg := inputConfig()
		cfg.Models[0].Limits.TokensPerMinute = 500
		l := newLimiter(t, cfg)
		acquire(t, l, "x", llmrate.WithEstimate(tokens(10_000)))
		_, err := l.Run(t.Context(), "x", inputRefuse(t), llmrate.WithMaxWait(time.Second))
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		require.NotErrorIs(t, err, llmrate.ErrTooLarge)
		require.Equal(t, time.Second, elapsed(), "it waited for the other only")
	})
	scenario(t, "an exact fit is not above", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "a", Limits: limits{TokensPerMinute: 1_000}}},
			JobTypes: jobTypes{"x": {EstimatedTokens: 1_000, EstimatedMemory: 80}},
			Memory:   llmrate.MemoryConfig{Limit: 100},
		})
		acquire(t, l, "x")
	})
}

// Numbers that a program prints or sends on are numbers, whatever the budget.
func TestInputMemoryTooSmallForAnything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "a"}}, JobTypes: jobTypes{"x": {EstimatedMemory: 1}, "y": {}},
			Memory: llmrate.MemoryConfig{Limit: 1, Share: 0.5},
		})
		_, err := l.TryAcquire(t.Context(), "x")
		require.ErrorIs(t, err, llmrate.ErrTooLarge)
		s := l.Stats().Models["a"].JobTypes["x"]
		require.Zero(t, s.Slots)
		require.False(t, math.IsNaN(s.Load) || math.IsInf(s.Load, 0), "load %g", s.Load)
		_, err = l.Run(t.Context(), "y", job(0, usage{}))
		require.NoError(t, err)
	})
}

func TestInputRunAfterClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, inputConfig())
		held := acquire(t, l, "x")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, l.Close(ctx), context.DeadlineExceeded)
		closed := func(err error) {
			t.Helper()
			require.ErrorIs(t, err, llmrate.ErrClosed)
		}
		inputUnchanged(t, l, func() {
			inputEach(t.Context(), t, l, "x", closed)
			inputEach(t.Context(), t, l, "x", closed, llmrate.WithMaxWait(0))
			inputEach(t.Context(), t, l, "y", closed, llmrate.WithModels("b"))
			inputEach(t.Context(), t, l, "x", closed, llmrate.WithEstimate(tokens(1<<40)))
			_, ok := l.Available("x")
			require.False(t, ok)
		})
		require.NoError(t, held.Settle(tokens(3)))
		require.EqualValues(t, 3, l.Stats().Models["a"].TokensPerMinute.Used)
		for range 3 {
			require.NoError(t, l.Close(t.Context()))
		}
		inputEach(t.Context(), t, l, "x", closed)
	})
}

// A CountTokens of the user's that goes wrong.
func TestInputCountTokens(t *testing.T) {
	bad := map[string]int64{"negative": -3, "absurd": llmrate.MaxAmount + 1}
	isFault := func(t *testing.T, err error, model string, n int64) {
		t.Helper()
		fault, ok := errors.AsType[*llmrate.FieldError](err)
		require.True(t, ok, "%T: %v", err, err)
		require.Contains(t, fault.Field, "CountTokens")
		require.ErrorContains(t, err, fmt.Sprintf("%q", model))
		require.ErrorContains(t, err, fmt.Sprint(n))
	}
	// counting makes the second model count tokens by a function that can be changed.
	counting := func(count *func(usage) int64) config {
		cfg := inputConfig()
		cfg.Models[1].CountTokens = func(u usage) int64 { return (*count)(u) }
		return cfg
	}
	for name, n := range bad {
		scenario(t, name, func(t *testing.T) {
			count := func(usage) int64 { return n }
			l, err := llmrate.New(t.Context(), counting(&count))
			require.Nil(t, l)
			isFault(t, err, "b", n)

			count = usage.TotalTokens
			l = newLimiter(t, counting(&count))
			r := acquire(t, l, "x", llmrate.WithModels("b"))
			waiting := acquire(t, l, "x", llmrate.WithModels("b"))
			count = func(usage) int64 { return n }
			inputUnchanged(t, l, func() {
				isFault(t, r.Settle(tokens(1)), "b", n)
				isFault(t, r.Settle(usage{}), "b", n)
				inputEach(t.Context(), t, l, "x", func(err error) { isFault(t, err, "b", n) },
					llmrate.WithModels("b"), llmrate.WithEstimate(tokens(1)))
			})
			r.Release() // needs no count
			_, err = l.Run(t.Context(), "x", job(0, tokens(1)), llmrate.WithModels("b"))
			isFault(t, err, "b", n)
			require.EqualValues(t, 3_000, l.Stats().Models["b"].TokensPerMinute.Used, "unknown keeps the estimate")
			count = usage.TotalTokens
			require.NoError(t, waiting.Settle(tokens(1)))
			require.Empty(t, l.Stats().Jobs)
		})
	}
	scenario(t, "panic", func(t *testing.T) { // is the user's own and goes on to the caller; it takes nothing along
		const boom = "cannot count"
		count := usage.TotalTokens
		l := newLimiter(t, counting(&count))
		b := llmrate.WithModels("b")
		r := acquire(t, l, "x", b)
		broken := func(usage) int64 { panic(boom) }
		count = broken
		inputUnchanged(t, l, func() {
			require.PanicsWithValue(t, boom, func() { _ = r.Settle(tokens(1)) })
			require.PanicsWithValue(t, boom, func() { _, _ = l.TryAcquire(t.Context(), "x", b, llmrate.WithEstimate(tokens(1))) })
		})
		require.PanicsWithValue(t, boom, func() { _, _ = l.Run(t.Context(), "x", job(0, tokens(1)), b) })
		require.Len(t, l.Stats().Jobs, 1)
		r.Release()
		require.Empty(t, l.Stats().Jobs)
		require.EqualValues(t, 2_000, l.Stats().Models["b"].TokensPerMinute.Used)

		// The same for a job that queues on the first model while the second is looked at.
		count = usage.TotalTokens
		full := acquire(t, l, "x", llmrate.WithModels("a"), llmrate.WithEstimate(tokens(10_000)))
		require.NoError(t, full.Settle(tokens(10_000)))
		count = broken
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.PanicsWithValue(t, boom, func() {
			_, _ = l.Run(ctx, "x", inputRefuse(t), llmrate.WithEstimate(tokens(500)), llmrate.WithMaxWait(5*time.Second))
		})
		require.Empty(t, l.Stats().Jobs)
		require.Zero(t, l.Stats().Models["a"].Concurrency.Waiting)
		sleepUntil(2 * minute)
		require.Zero(t, l.Stats().Models["a"].TokensPerMinute.Used)
	})
}
