package llmrate_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// Table 2 of SCENARIOS.md: how job types share a model. Rows 2.4 and 2.9 need a fleet and are tested with the backends.

// fixed is a job type whose ratio stays as it is.
func fixed(estimate int64, ratio float64) jobType {
	return jobType{EstimatedTokens: estimate, Ratio: ratio, FixedRatio: true}
}

func TestShares(t *testing.T) {
	// A model of 10 or 100 jobs, bounded in each way that a model can be.
	bounds := func(jobs int64) map[string]limits {
		return map[string]limits{
			"tokens a minute":     {TokensPerMinute: jobs * 10_000},
			"requests a minute":   {RequestsPerMinute: jobs},
			"requests a day":      {RequestsPerDay: jobs},
			"input tokens":        {InputTokensPerMinute: jobs * 10_000},
			"output tokens":       {OutputTokensPerMinute: jobs * 10_000},
			"a custom window":     {Custom: []llmrate.CustomLimit{{Resource: llmrate.Tokens, Per: 10 * time.Second, Max: jobs * 10_000}}},
			"a bucket of tokens":  {TokensPerMinute: jobs * 10_000, Refill: llmrate.Continuous},
			"concurrency":         {MaxConcurrent: jobs},
			"tokens, of all":      {TokensPerMinute: jobs * 10_000, RequestsPerMinute: 3 * jobs, MaxConcurrent: 2 * jobs, TokensPerDay: jobs * 20_000},
			"concurrency, of all": {TokensPerMinute: jobs * 20_000, RequestsPerMinute: 3 * jobs, MaxConcurrent: jobs, TokensPerDay: jobs * 40_000},
		}
	}
	// expect runs many jobs of every type and counts those that start at once.
	expect := func(t *testing.T, l limits, ratios map[string]float64, want map[string]int) {
		cfg := config{Models: []modelConfig{{ID: "m", Limits: l}}, JobTypes: jobTypes{}}
		for name, ratio := range ratios {
			cfg.JobTypes[name] = fixed(10_000, ratio)
		}
		l1, l2 := newLimiter(t, cfg), newLimiter(t, cfg)
		sum := 0
		for name, n := range want {
			require.Equal(t, n, slots(l1, "m", name), "slots of %s", name)
			require.Equal(t, n, fill(t, l1, name), "started of %s", name)
			require.Equal(t, n, slots(l1, "m", name), "slots of %s, all used", name)
			sum += n
		}
		// The same if they come in turns and wait.
		j := runJobs(t, l2, "a", 0, nil)
		for range sum + 1 {
			for name := range want {
				j.run(name, 1, job(time.Second, tokens(10_000)))
			}
		}
		for name, n := range want {
			require.Len(t, j.begins(name), n, "started of %s", name)
		}
	}
	for bound, l := range bounds(10) {
		scenario(t, "2.1 pool 10, ratios 0.6 and 0.4, bound by "+bound, func(t *testing.T) {
			expect(t, l, map[string]float64{"a": 0.6, "b": 0.4}, map[string]int{"a": 6, "b": 4})
		})
	}
	for bound, l := range bounds(100) {
		scenario(t, "2.2 pool 100, ratios 0.5, 0.3 and 0.2, bound by "+bound, func(t *testing.T) {
			expect(t, l, map[string]float64{"a": 0.5, "b": 0.3, "c": 0.2}, map[string]int{"a": 50, "b": 30, "c": 20})
		})
		scenario(t, "2.2 pool 100, ratios whose products fall short by float error, bound by "+bound, func(t *testing.T) {
			expect(t, l, map[string]float64{"a": 0.29, "b": 0.57, "c": 0.14}, map[string]int{"a": 29, "b": 57, "c": 14})
		})
	}

	scenario(t, "2.1 in every minute of a long queue", func(t *testing.T) {
		a, b := fixed(10_000, 0.6), fixed(10_000, 0.4)
		a.MaxWait, b.MaxWait = maxWait{"m": time.Hour}, maxWait{"m": time.Hour}
		l := newLimiter(t, config{Models: []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 100_000}}}, JobTypes: jobTypes{"a": a, "b": b}})
		j := runJobs(t, l, "a", 18, job(time.Second, tokens(10_000)))
		j.run("b", 12, job(time.Second, tokens(10_000)))
		j.wait()
		require.Equal(t, slices.Concat(repeat(6, 0), repeat(6, minute), repeat(6, 2*minute)), j.times("a"))
		require.Equal(t, slices.Concat(repeat(4, 0), repeat(4, minute), repeat(4, 2*minute)), j.times("b"))
	})

	scenario(t, "2.3 ratios that are not set", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 100_000}}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 1000, Ratio: 0.3}, "b": {EstimatedTokens: 1000, Ratio: 0.4}, "c": {EstimatedTokens: 1000}, "d": {EstimatedTokens: 1000}, "e": {EstimatedTokens: 1000}},
		})
		want, sum := map[string]float64{"a": 0.3, "b": 0.4, "c": 0.1, "d": 0.1, "e": 0.1}, 0.0
		for name, st := range l.Stats().JobTypes {
			require.InDelta(t, want[name], st.Ratio, 1e-9, name)
			require.InDelta(t, want[name], st.InitialRatio, 1e-9, name)
			require.Equal(t, int(math.Round(100*want[name])), slots(l, "m", name), name)
			sum += st.Ratio
		}
		require.Len(t, l.Stats().JobTypes, 5)
		require.InDelta(t, 1, sum, 1e-9)
	})

	// Row 2.5: a window's share is used up by what was charged, whether or not the jobs still run.
	summaries := func(t *testing.T, l limits) *limiter {
		summary := fixed(10_000, 0.3)
		summary.MaxWait = maxWait{"m": 2 * minute}
		return newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: l}, {ID: "spare"}},
			JobTypes: jobTypes{"summary": summary, "other": fixed(1000, 0.7)},
		})
	}
	scenario(t, "2.5 rate-bound: the 8th job starts in the next minute", func(t *testing.T) {
		l := summaries(t, limits{TokensPerMinute: 250_000})
		require.Equal(t, 7, slots(l, "m", "summary"))
		j := runJobs(t, l, "summary", 8, job(100*time.Millisecond, tokens(10_000)))
		require.Len(t, j.begins(""), 7)
		j.wait()
		require.Equal(t, append(repeat(7, 0), minute), j.times(""))
		require.Equal(t, 8, j.on("m"))
		require.Equal(t, minute, j.ends()[7].result.Waited)
	})
	scenario(t, "2.5 rate-bound: a refund gives the share back", func(t *testing.T) {
		l := summaries(t, limits{TokensPerMinute: 250_000})
		j := runJobs(t, l, "summary", 15, job(100*time.Millisecond, tokens(5000)))
		j.wait()
		// 75,000 for the type: a 14th job fits beside 13 of 5,000, a 15th would need 80,000.
		require.Less(t, j.times("")[13], time.Second)
		require.Equal(t, minute, j.times("")[14])
	})
	scenario(t, "2.5 rate-bound: a larger job takes more of the share", func(t *testing.T) {
		l := summaries(t, limits{TokensPerMinute: 250_000})
		acquire(t, l, "summary", llmrate.WithEstimate(tokens(50_000)), llmrate.WithModels("m"))
		require.Equal(t, 2, fill(t, l, "summary", llmrate.WithModels("m")))
	})
	scenario(t, "2.5 rate-bound: overage counts against the share", func(t *testing.T) {
		l := summaries(t, limits{TokensPerMinute: 250_000})
		require.NoError(t, acquire(t, l, "summary").Settle(tokens(50_000)))
		require.Equal(t, 2, fill(t, l, "summary", llmrate.WithModels("m")))
	})
	scenario(t, "2.5 what the share of one type leaves is not taken by another", func(t *testing.T) {
		l := summaries(t, limits{TokensPerMinute: 250_000})
		require.Equal(t, 175, fill(t, l, "other", llmrate.WithModels("m")))
		require.Equal(t, 7, fill(t, l, "summary", llmrate.WithModels("m")))
		require.EqualValues(t, 245_000, l.Stats().Models["m"].TokensPerMinute.Used)
	})

	scenario(t, "2.6 concurrency-bound: a finished job frees its slot at once", func(t *testing.T) {
		l := summaries(t, limits{MaxConcurrent: 10})
		require.Equal(t, 3, slots(l, "m", "summary"))
		j := runJobs(t, l, "summary", 8, job(100*time.Millisecond, tokens(10_000)))
		j.wait()
		const ms = time.Millisecond
		require.Equal(t, slices.Concat(repeat(3, 0), repeat(3, 100*ms), repeat(2, 200*ms)), j.times(""))
		require.Equal(t, 8, j.on("m"))
	})
	scenario(t, "2.6 concurrency binds before the rate", func(t *testing.T) {
		l := summaries(t, limits{MaxConcurrent: 10, TokensPerMinute: 250_000})
		j := runJobs(t, l, "summary", 8, job(100*time.Millisecond, tokens(10_000)))
		j.wait()
		const ms = time.Millisecond
		require.Equal(t, slices.Concat(repeat(3, 0), repeat(3, 100*ms), []time.Duration{200 * ms, minute}), j.times(""))
	})

	for bound, l := range bounds(1) {
		scenario(t, "2.7 pool 1, ratios 0.1 and 0.9, bound by "+bound, func(t *testing.T) {
			cfg := config{Models: []modelConfig{{ID: "m", Limits: l}}, JobTypes: jobTypes{"small": fixed(10_000, 0.1), "large": fixed(10_000, 0.9)}}
			for _, first := range []string{"small", "large"} {
				l := newLimiter(t, cfg)
				require.Equal(t, 1, slots(l, "m", "small"))
				require.Equal(t, 1, slots(l, "m", "large"))
				require.Equal(t, 1, fill(t, l, first))
				requireFull(t, l, "small")
				requireFull(t, l, "large")
			}
		})
	}
	scenario(t, "2.7 pool 5, ratios 0.1 and 0.9", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 50_000}}},
			JobTypes: jobTypes{"small": fixed(10_000, 0.1), "large": fixed(10_000, 0.9)},
		})
		require.Equal(t, 1, fill(t, l, "small"))
		require.Equal(t, 4, fill(t, l, "large"))
	})
	scenario(t, "2.7 pool 1: the small type has its turn", func(t *testing.T) {
		small, large := fixed(10_000, 0.1), fixed(10_000, 0.9)
		small.MaxWait, large.MaxWait = maxWait{"m": time.Hour}, maxWait{"m": time.Hour}
		l := newLimiter(t, config{Models: []modelConfig{{ID: "m", Limits: limits{MaxConcurrent: 1}}}, JobTypes: jobTypes{"small": small, "large": large}})
		j := runJobs(t, l, "large", 3, job(time.Second, tokens(10_000)))
		j.run("small", 1, job(time.Second, tokens(10_000)))
		for range 100 { // more keep coming
			j.run("large", 1, job(time.Second, tokens(10_000)))
		}
		sleepUntil(3 * time.Second)
		require.Len(t, j.begins("small"), 1)
	})

	for name, row := range map[string]struct {
		ratios map[string]float64
		fields []string // as the errors name them
	}{
		"a sum above 1":        {map[string]float64{"a": 0.6, "b": 0.5}, []string{"JobTypes"}},
		"a sum just above 1":   {map[string]float64{"a": 0.6, "b": 0.400001}, []string{"JobTypes"}},
		"below 0":              {map[string]float64{"a": -0.1, "b": 0.5}, []string{`JobTypes["a"].Ratio`}},
		"above 1":              {map[string]float64{"a": 1.1}, []string{`JobTypes["a"].Ratio`, "JobTypes"}},
		"not a number":         {map[string]float64{"a": math.NaN()}, []string{`JobTypes["a"].Ratio`}},
		"infinite":             {map[string]float64{"a": math.Inf(1)}, []string{`JobTypes["a"].Ratio`, "JobTypes"}},
		"several at once":      {map[string]float64{"a": -1, "b": 2, "c": 0.5}, []string{`JobTypes["a"].Ratio`, `JobTypes["b"].Ratio`, "JobTypes"}},
		"no job type":          {nil, []string{"JobTypes"}},
		"a sum of 1 exactly":   {map[string]float64{"a": 0.6, "b": 0.4}, nil},
		"a float error over 1": {map[string]float64{"a": 0.5, "b": 0.5 + 1e-12}, nil},
		"less than 1":          {map[string]float64{"a": 0.5, "b": 0.4}, nil},
		"just 1":               {map[string]float64{"a": 1}, nil},
	} {
		t.Run("2.8 "+name, func(t *testing.T) {
			cfg := config{Models: []modelConfig{{ID: "m"}}, JobTypes: jobTypes{}}
			for name, ratio := range row.ratios {
				cfg.JobTypes[name] = jobType{Ratio: ratio}
			}
			l, err := llmrate.New(t.Context(), cfg)
			require.ElementsMatch(t, row.fields, faultyFields(err), "%v", err)
			require.ElementsMatch(t, row.fields, faultyFields(cfg.Validate()))
			if row.fields == nil {
				require.NoError(t, err)
				require.NoError(t, l.Close(t.Context()))
			} else {
				require.Nil(t, l)
			}
		})
	}
}

// faultyFields are the fields that an error of New names.
func faultyFields(err error) (fields []string) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			fields = append(fields, faultyFields(e)...)
		}
	} else if e, ok := errors.AsType[*llmrate.FieldError](err); ok {
		fields = append(fields, e.Field)
	}
	return fields
}

// DESIGN.md 3.8, beyond the rows of the table.
func TestSharesByDesign(t *testing.T) {
	scenario(t, "a single job type has the whole model, whatever its ratio", func(t *testing.T) {
		for _, l := range []limits{{TokensPerMinute: 100_000}, {MaxConcurrent: 10}, {TokensPerMinute: 100_000, Refill: llmrate.Continuous}} {
			l := newLimiter(t, config{Models: []modelConfig{{ID: "m", Limits: l}}, JobTypes: jobTypes{"a": {EstimatedTokens: 10_000, Ratio: 0.3}}})
			require.Equal(t, 10, slots(l, "m", "a"))
			require.Equal(t, 10, fill(t, l, "a"))
		}
	})

	for _, row := range []struct {
		name             string
		ratio            float64
		min, max, expect int
	}{
		{"no bounds", 0.3, 0, 0, 3},
		{"a minimum above the share", 0.3, 5, 0, 5},
		{"a minimum below the share", 0.3, 2, 0, 3},
		{"a minimum above the model's limit", 0.3, 20, 0, 10},
		{"a maximum below the share", 0.3, 0, 2, 2},
		{"a maximum above the share", 0.3, 0, 5, 3},
		{"both", 0.3, 4, 4, 4},
		{"a minimum that rounding must not lose", 0.01, 1, 0, 1},
	} {
		for bound, lim := range map[string]limits{"rate": {TokensPerMinute: 100_000}, "concurrency": {MaxConcurrent: 10}} {
			scenario(t, fmt.Sprintf("min and max capacity, %s-bound: %s", bound, row.name), func(t *testing.T) {
				l := newLimiter(t, config{
					Models:   []modelConfig{{ID: "m", Limits: lim, MinCapacity: row.min, MaxCapacity: row.max}},
					JobTypes: jobTypes{"a": fixed(10_000, row.ratio), "b": fixed(10_000, 0.5)},
				})
				require.Equal(t, row.expect, fill(t, l, "a"))
			})
		}
	}
	scenario(t, "a maximum binds a single job type as well", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 100_000}, MaxCapacity: 4}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 10_000}},
		})
		require.Equal(t, 4, slots(l, "m", "a"))
		require.Equal(t, 4, fill(t, l, "a"))
	})

	scenario(t, "a job type has its part of the bucket and of its refill", func(t *testing.T) {
		for _, refill := range []llmrate.Refill{llmrate.Continuous, llmrate.Continuous.WithBurst(20 * time.Second)} {
			start := elapsed()
			a := fixed(10_000, 0.5)
			a.MaxWait = maxWait{"m": time.Hour}
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 120_000, Refill: refill}}},
				JobTypes: jobTypes{"a": a, "b": fixed(10_000, 0.5)},
			})
			burst := 6
			if refill != llmrate.Continuous {
				burst = 2
			}
			require.Equal(t, burst, slots(l, "m", "a"))
			j := runJobs(t, l, "a", burst+5, job(0, tokens(10_000)))
			j.wait()
			for i, at := range j.times("") {
				want := start + time.Duration(max(0, i-burst+1))*10*time.Second
				require.InDelta(t, want, at, float64(time.Millisecond), "job %d", i)
			}
		}
	})

	scenario(t, "a job larger than its type's budget may start when the type has nothing charged", func(t *testing.T) {
		for _, refill := range []llmrate.Refill{llmrate.FixedWindow, llmrate.Continuous} {
			l := newLimiter(t, config{
				Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 60_000, Refill: refill}}},
				JobTypes: jobTypes{"a": fixed(7000, 1./3), "b": fixed(10_000, 1./3)},
			})
			begin := elapsed()
			acquire(t, l, "a", llmrate.WithEstimate(tokens(30_000)))
			requireFull(t, l, "a", llmrate.WithEstimate(tokens(1)))

			acquire(t, l, "b", llmrate.WithEstimate(tokens(7000)))
			j := runJobs(t, l, "b", 1, job(0, tokens(30_000)), llmrate.WithEstimate(tokens(30_000)), llmrate.WithMaxWait(time.Hour))
			j.run("b", 1, job(0, tokens(1)), llmrate.WithMaxWait(time.Hour), llmrate.WithEstimate(tokens(1)))
			require.Empty(t, j.begins("")) // first come, first served
			j.wait()
			want := minute
			if refill == llmrate.Continuous {
				want = 21 * time.Second // when 7000 have drained at a third of 60,000 a minute
			}
			require.InDelta(t, begin+want, j.times("")[0], float64(time.Millisecond))
			sleepUntil(10 * minute)
		}
	})

	scenario(t, "the smallest dimension binds, the longer window on a tie", func(t *testing.T) {
		a := fixed(10_000, 0.5)
		a.EstimatedRequests = 2
		l := newLimiter(t, config{
			Models: []modelConfig{
				{ID: "tokens", Limits: limits{TokensPerMinute: 100_000, RequestsPerMinute: 200}},
				{ID: "requests", Limits: limits{TokensPerMinute: 100_000, RequestsPerMinute: 8}},
				{ID: "tie", Limits: limits{TokensPerMinute: 100_000, RequestsPerDay: 20}},
			},
			JobTypes: jobTypes{"a": a, "b": fixed(10_000, 0.5)},
		})
		require.Equal(t, 5, slots(l, "tokens", "a"))
		require.Equal(t, 2, slots(l, "requests", "a"))
		require.Equal(t, 5, slots(l, "tie", "a"))
		// The load is that of the dimension that binds: what remains in the next minute tells the day from the minute.
		fill(t, l, "a", llmrate.WithModels("tie"))
		sleepUntil(minute)
		require.InDelta(t, 1, l.Stats().Models["tie"].JobTypes["a"].Load, 1e-9)
		require.InDelta(t, 0, l.Stats().Models["tokens"].JobTypes["a"].Load, 1e-9)
	})

	scenario(t, "jobs of different sizes share in units", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 100_000}}},
			JobTypes: jobTypes{"large": fixed(20_000, 0.5), "small": fixed(1000, 0.5)},
		})
		require.Equal(t, 2, slots(l, "m", "large"))
		require.Equal(t, 50, slots(l, "m", "small"))
		require.Equal(t, 2, fill(t, l, "large"))
		require.Equal(t, 50, fill(t, l, "small"))
	})

	// A job of half the limit, of a type with a small share, among a long queue of small jobs of the other type. It has
	// to wait for no more than one full window.
	for _, refill := range []llmrate.Refill{llmrate.FixedWindow, llmrate.Continuous, llmrate.Continuous.WithBurst(30 * time.Second)} {
		for _, perDay := range []int64{0, 1_000_000} {
			scenario(t, fmt.Sprintf("a large job is not starved by small ones of another type, %s, %d a day", refill, perDay), func(t *testing.T) {
				large, small := fixed(25_000, 0.1), fixed(500, 0.9)
				large.MaxWait, small.MaxWait = maxWait{"m": day}, maxWait{"m": day}
				l := newLimiter(t, config{
					Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 60_000, TokensPerDay: perDay, Refill: refill}}},
					JobTypes: jobTypes{"large": large, "small": small},
				})
				j := runJobs(t, l, "small", 1000, job(0, tokens(500)))
				sleepUntil(30 * time.Second)
				j.run("large", 1, job(0, tokens(25_000)))
				sleepUntil(30*time.Second + 2*minute)
				require.Len(t, j.begins("large"), 1)
				require.LessOrEqual(t, j.times("large")[0], 2*minute)
			})
		}
	}

	scenario(t, "when capacity comes, the type furthest below its share is served first", func(t *testing.T) {
		a, b := fixed(10_000, 0.5), fixed(10_000, 0.5)
		a.MaxWait, b.MaxWait = maxWait{"m": time.Hour}, maxWait{"m": time.Hour}
		l := newLimiter(t, config{Models: []modelConfig{{ID: "m", Limits: limits{MaxConcurrent: 3}, MinCapacity: 3}}, JobTypes: jobTypes{"a": a, "b": b}})
		a1, _, b2 := acquire(t, l, "a"), acquire(t, l, "b"), acquire(t, l, "b")
		j := runJobs(t, l, "b", 2, job(time.Hour, tokens(1)))
		j.run("a", 1, job(time.Hour, tokens(1)))
		b2.Release() // leaves one of each, so the one who came first
		require.Equal(t, []begun{{0, "b", "m", 0}}, j.begins(""))
		a1.Release() // leaves two of b and none of a, though b came first again
		require.Equal(t, []begun{{0, "b", "m", 0}, {2, "a", "m", 0}}, j.begins(""))
	})
}
