package llmrate_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// Table 7 of SCENARIOS.md: from one model to the next.

// escalating is a limiter for jobs of 10,000 tokens that wait for no model.
func escalating(t *testing.T, models ...modelConfig) (*limiter, *recorder) {
	t.Helper()
	noWait := maxWait{}
	for _, m := range models {
		noWait[m.ID] = 0
	}
	r := new(recorder)
	return newLimiter(t, config{
		Models: models, JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, MaxWait: noWait}}, OnEvent: r.record,
	}), r
}

func TestEscalation(t *testing.T) {
	scenario(t, "7.1 the first model is free", func(t *testing.T) {
		l, r := escalating(t, modelConfig{ID: "zeta", Limits: limits{TokensPerMinute: 100_000}}, modelConfig{ID: "alpha"})
		model, ok := l.Available("a")
		require.True(t, ok)
		require.Equal(t, "zeta", model)
		j := runJobs(t, l, "a", 10, job(time.Second, tokens(10_000)))
		j.wait()
		require.Equal(t, 10, j.on("zeta"))
		require.Equal(t, repeat(10, 0), j.times(""))
		require.Empty(t, eventsOf[llmrate.EscalatedEvent](r))
		require.Empty(t, eventsOf[llmrate.QueuedEvent](r))
		for _, e := range j.ends() {
			require.Equal(t, "zeta", e.result.Model)
			require.Len(t, e.result.Attempts, 1)
		}
	})

	for bound, l := range map[string]limits{
		"tokens a minute":        {TokensPerMinute: 19_999},
		"tokens a day":           {TokensPerDay: 19_999},
		"requests a minute":      {RequestsPerMinute: 1},
		"requests a day":         {RequestsPerDay: 1},
		"input tokens a minute":  {InputTokensPerMinute: 19_999},
		"output tokens a minute": {OutputTokensPerMinute: 19_999},
		"concurrency":            {MaxConcurrent: 1},
		"a custom window":        {Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: time.Second, Max: 1}}},
		"a bucket":               {TokensPerMinute: 19_999, Refill: llmrate.Continuous},
	} {
		scenario(t, "7.2 the first model is full by "+bound, func(t *testing.T) {
			l, r := escalating(t, modelConfig{ID: "zeta", Limits: l}, modelConfig{ID: "alpha"})
			j := runJobs(t, l, "a", 2, job(time.Second, tokens(10_000)))
			require.Equal(t, []begun{{0, "a", "zeta", 0}, {1, "a", "alpha", 0}}, j.begins(""))
			model, _ := l.Available("a")
			require.Equal(t, "alpha", model)
			j.wait()
			events := eventsOf[llmrate.EscalatedEvent](r)
			require.Equal(t, []llmrate.EscalatedEvent{{Model: "zeta", NextModel: "alpha", JobType: "a", JobID: events[0].JobID}}, events)
		})
	}
	scenario(t, "7.2 the job type's share of the first model is used up", func(t *testing.T) {
		a := fixed(10_000, 0.5)
		a.MaxWait = maxWait{"zeta": 0}
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "zeta", Limits: limits{TokensPerMinute: 20_000}}, {ID: "alpha"}},
			JobTypes: jobTypes{"a": a, "b": fixed(10_000, 0.5)},
		})
		j := runJobs(t, l, "a", 2, job(time.Second, tokens(10_000)))
		require.Equal(t, []begun{{0, "a", "zeta", 0}, {1, "a", "alpha", 0}}, j.begins(""))
	})
	scenario(t, "7.2 the job is too large for the first model", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "zeta", Limits: limits{TokensPerMinute: 9999}}, {ID: "alpha", Limits: limits{MaxConcurrent: 1}}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, MaxWait: maxWait{"zeta": time.Hour, "alpha": 0}}},
		})
		j := runJobs(t, l, "a", 2, job(time.Second, tokens(10_000)))
		require.Equal(t, []begun{{0, "a", "alpha", 0}}, j.begins(""))
		require.ErrorIs(t, j.ends()[0].err, llmrate.ErrNoCapacity)
		require.NotErrorIs(t, j.ends()[0].err, llmrate.ErrTooLarge)
		j.run("a", 1, job(0, tokens(1)), llmrate.WithModels("zeta"))
		require.ErrorIs(t, j.ends()[1].err, llmrate.ErrTooLarge)
		require.Zero(t, elapsed())
	})

	scenario(t, "7.3 in the order of the configuration", func(t *testing.T) {
		full := limits{TokensPerMinute: 10_000}
		l, r := escalating(t, modelConfig{ID: "zeta", Limits: full}, modelConfig{ID: "beta", Limits: full}, modelConfig{ID: "mu"}, modelConfig{ID: "alpha"})
		j := runJobs(t, l, "a", 4, job(time.Second, tokens(10_000)))
		require.Equal(t, []begun{{0, "a", "zeta", 0}, {1, "a", "beta", 0}, {2, "a", "mu", 0}, {3, "a", "mu", 0}}, j.begins(""))
		var path []string
		for _, e := range eventsOf[llmrate.EscalatedEvent](r)[1:3] {
			path = append(path, e.Model, e.NextModel)
		}
		require.Equal(t, []string{"zeta", "beta", "beta", "mu"}, path)
	})
	scenario(t, "7.3 in the order of WithModels", func(t *testing.T) {
		full := limits{TokensPerMinute: 10_000}
		l, _ := escalating(t, modelConfig{ID: "zeta", Limits: full}, modelConfig{ID: "beta", Limits: full}, modelConfig{ID: "alpha", Limits: full}, modelConfig{ID: "spare"})
		j := runJobs(t, l, "a", 4, job(time.Second, tokens(10_000)), llmrate.WithModels("alpha", "zeta", "beta"))
		require.Equal(t, []begun{{0, "a", "alpha", 0}, {1, "a", "zeta", 0}, {2, "a", "beta", 0}}, j.begins(""))
		err := j.ends()[0].err
		require.ErrorIs(t, err, llmrate.ErrNoCapacity)
		capacity, ok := errors.AsType[*llmrate.CapacityError](err)
		require.True(t, ok)
		var tried []string
		for _, s := range capacity.Models {
			tried = append(tried, s.Model)
		}
		require.Equal(t, []string{"alpha", "zeta", "beta"}, tried)
		require.True(t, capacity.RetryAt.Equal(midnight.Add(minute)))
	})

	for name, wait := range map[string]time.Duration{"at once": 0, "after waiting": 5 * time.Second} {
		scenario(t, "7.4 a model that did not run the job is charged nothing, "+name, func(t *testing.T) {
			first := limits{TokensPerMinute: 100_000, TokensPerDay: 100_000, RequestsPerMinute: 100, RequestsPerDay: 100, MaxConcurrent: 1}
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "first", Limits: first, Pricing: llmrate.Pricing{Input: 1}}, {ID: "second", Limits: first}},
				Memory:   memory(100 * mib),
				JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, EstimatedMemory: mib, MaxWait: maxWait{"first": wait}}},
			})
			held := acquire(t, l, "a")
			before := l.Stats().Models["first"]
			j := runJobs(t, l, "a", 1, job(time.Second, tokens(10_000)))
			sleepUntil(wait)
			require.Equal(t, []begun{{0, "a", "second", wait}}, j.begins(""))
			require.Equal(t, before, l.Stats().Models["first"])
			require.Equal(t, 2*mib, l.Stats().Memory.Used)
			j.wait()
			require.Equal(t, before, l.Stats().Models["first"])
			require.EqualValues(t, 10_000, l.Stats().Models["second"].TokensPerDay.Used)
			require.Zero(t, j.ends()[0].result.Cost)
			require.Equal(t, wait, j.ends()[0].result.Waited)
			require.NoError(t, held.Settle(usage{}))
			require.Zero(t, l.Stats().Models["first"].TokensPerMinute.Used)
		})
	}

	scenario(t, "7.5 a job that delegates", func(t *testing.T) {
		l, r := escalating(t,
			modelConfig{ID: "first", Limits: limits{TokensPerMinute: 100_000, RequestsPerMinute: 100, MaxConcurrent: 1}, Pricing: llmrate.Pricing{Input: 2, Cached: 1, Output: 10}},
			modelConfig{ID: "second", Limits: limits{TokensPerMinute: 100_000, RequestsPerMinute: 100, MaxConcurrent: 1}, Pricing: llmrate.Pricing{Input: 0.5, Output: 1}},
		)
		failed := errors.New("refused by the content filter")
		onFirst := usage{Requests: 1, InputTokens: 3000, CachedTokens: 1000, OutputTokens: 1000}
		onSecond := usage{Requests: 2, InputTokens: 4000, OutputTokens: 3000}
		var seen []llmrate.Attempt[string]
		res, err := l.Run(t.Context(), "a", func(_ context.Context, a llmrate.Attempt[string]) (usage, error) {
			seen = append(seen, a)
			time.Sleep(time.Second)
			if a.Model == "first" {
				return usage{}, llmrate.Delegate(failed, onFirst)
			}
			require.Zero(t, l.Stats().Models["first"].Concurrency.Active)
			return onSecond, nil
		}, llmrate.WithJobID("job"))
		require.NoError(t, err)
		estimate := usage{Requests: 1, InputTokens: 10_000}
		require.Equal(t, []llmrate.Attempt[string]{
			{Model: "first", Number: 1, JobID: "job", Estimate: estimate}, {Model: "second", Number: 2, JobID: "job", Estimate: estimate},
		}, seen)

		const costOfFirst, costOfSecond = (3000*2 + 1000*1 + 1000*10) / 1e6, (4000*0.5 + 3000*1) / 1e6
		require.InDelta(t, costOfFirst, res.Attempts[0].Cost, 1e-12)
		require.InDelta(t, costOfSecond, res.Attempts[1].Cost, 1e-12)
		require.InDelta(t, costOfFirst+costOfSecond, res.Cost, 1e-12)
		require.Equal(t, llmrate.Result[string]{
			JobID: "job", Model: "second", Usage: onSecond, Cost: res.Cost,
			Attempts: []llmrate.AttemptResult[string]{
				{Model: "first", Usage: onFirst, UsageKnown: true, Cost: res.Attempts[0].Cost, Ran: time.Second, Err: failed},
				{Model: "second", Usage: onSecond, UsageKnown: true, Cost: res.Attempts[1].Cost, Ran: time.Second},
			},
		}, res)
		st := l.Stats()
		require.EqualValues(t, 5000, st.Models["first"].TokensPerMinute.Used)
		require.EqualValues(t, 1, st.Models["first"].RequestsPerMinute.Used)
		require.EqualValues(t, 7000, st.Models["second"].TokensPerMinute.Used)
		require.EqualValues(t, 2, st.Models["second"].RequestsPerMinute.Used)
		require.Equal(t, []llmrate.EscalatedEvent{{Model: "first", NextModel: "second", JobType: "a", JobID: "job", Delegated: true}}, eventsOf[llmrate.EscalatedEvent](r))
		require.Len(t, eventsOf[llmrate.EndedEvent](r), 2)
	})
	scenario(t, "7.5 a job that delegates queues like any other", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "first"}, {ID: "second", Limits: limits{MaxConcurrent: 1}}, {ID: "third"}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, MaxWait: maxWait{"second": 5 * time.Second}}},
		})
		failed := errors.New("failed")
		delegate := func(ctx context.Context, a llmrate.Attempt[string]) (usage, error) {
			if a.Model == "first" {
				return usage{}, llmrate.Delegate(failed, tokens(1))
			}
			return job(3*time.Second, tokens(1))(ctx, a)
		}
		j := runJobs(t, l, "a", 3, delegate)
		j.wait()
		require.Equal(t, []begun{
			{0, "a", "first", 0}, {0, "a", "second", 0}, {1, "a", "first", 0}, {2, "a", "first", 0},
			{1, "a", "second", 3 * time.Second}, {2, "a", "third", 5 * time.Second},
		}, j.begins(""))
	})

	scenario(t, "7.6 50 jobs at once", func(t *testing.T) {
		for _, ratio := range []float64{0, 1} {
			noWait := maxWait{"first": 0, "second": 0}
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "first", Limits: limits{TokensPerMinute: 100_000}}, {ID: "second", Limits: limits{TokensPerMinute: 1_000_000}}, {ID: "third"}},
				JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, MaxWait: noWait, Ratio: ratio}},
			})
			j := runJobs(t, l, "a", 50, job(time.Second, tokens(10_000)))
			require.Equal(t, []int{10, 40, 0}, []int{j.on("first"), j.on("second"), j.on("third")})
			j.wait()
		}
	})

	scenario(t, "7.7 share and max wait on the second model", func(t *testing.T) {
		a, b := fixed(10_000, 0.3), fixed(10_000, 0.7)
		a.MaxWait = maxWait{"first": time.Second, "second": 2 * time.Second}
		b.MaxWait = maxWait{"first": 0, "second": 0}
		l := newLimiter(t, config{
			Models: []modelConfig{
				{ID: "first", Limits: limits{MaxConcurrent: 1}},
				{ID: "second", Limits: limits{TokensPerMinute: 100_000}},
				{ID: "third"},
			},
			JobTypes: jobTypes{"a": a, "b": b},
		})
		held := acquire(t, l, "b")
		j := runJobs(t, l, "a", 5, job(10*time.Second, tokens(10_000)))
		require.Empty(t, j.begins(""))
		require.EqualValues(t, 5, l.Stats().Models["first"].Concurrency.Waiting)
		j.run("b", 9, job(10*time.Second, tokens(10_000)))
		require.Equal(t, 7, j.on("second"))
		require.Equal(t, 2, j.on("third"))
		sleepUntil(time.Second)
		require.Equal(t, 7+3, j.on("second"))
		require.EqualValues(t, 2, l.Stats().Models["second"].JobTypes["a"].Waiting)
		j.wait()
		require.Equal(t, append(repeat(3, time.Second), repeat(2, 3*time.Second)...), j.times("a"))
		var models []string
		for _, b := range j.begins("a") {
			models = append(models, b.model)
		}
		require.Equal(t, slices.Concat(slices.Repeat([]string{"second"}, 3), slices.Repeat([]string{"third"}, 2)), models)
		held.Release()
	})
	scenario(t, "7.7 the share of a concurrency-bound second model", func(t *testing.T) {
		a, b := fixed(10_000, 0.3), fixed(10_000, 0.7)
		a.MaxWait = maxWait{"first": 0, "second": time.Hour}
		b.MaxWait = maxWait{"first": 0, "second": 0}
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "first", Limits: limits{MaxConcurrent: 1}}, {ID: "second", Limits: limits{MaxConcurrent: 10}}},
			JobTypes: jobTypes{"a": a, "b": b},
		})
		acquire(t, l, "b")
		j := runJobs(t, l, "a", 7, job(10*time.Second, tokens(10_000)))
		j.wait()
		require.Equal(t, slices.Concat(repeat(3, 0), repeat(3, 10*time.Second), repeat(1, 20*time.Second)), j.times("a"))
		require.Equal(t, 7, j.on("second"))
	})
}
