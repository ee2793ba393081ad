package llmrate_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// SCENARIOS table 8: ratios follow the load, which is budget used ÷ budget (DESIGN 3.8). Here most of it is concurrency
// that is held: with 300 slots and ratios of a third, 97 running jobs are a load of 97 %.

const ratioCycle = llmrate.DefaultRatioInterval

// ratioModel has so much concurrency.
func ratioModel(slots int64) []modelConfig {
	return []modelConfig{{ID: "m", Limits: limits{MaxConcurrent: slots}}}
}

// ratioHold makes each job type run so many jobs, until the test ends.
func ratioHold(t *testing.T, l *limiter, running map[string]int) (held map[string][]*llmrate.Reservation[string]) {
	t.Helper()
	held = map[string][]*llmrate.Reservation[string]{}
	for _, name := range slices.Sorted(maps.Keys(running)) {
		for range running[name] {
			held[name] = append(held[name], acquire(t, l, name))
		}
	}
	return held
}

// ratioRun lets the time of n cycles pass. There is no goroutine to watch it: a cycle takes place when a job comes.
func ratioRun(t *testing.T, l *limiter, jobType string, n int) {
	t.Helper()
	for range n {
		time.Sleep(ratioCycle)
		if r, err := l.TryAcquire(t.Context(), jobType); err == nil {
			require.NoError(t, r.Settle(usage{}))
		}
	}
}

// ratiosOf are the ratios now; their sum is checked on the way.
func ratiosOf(t *testing.T, l *limiter) map[string]float64 {
	t.Helper()
	ratios, sum := map[string]float64{}, 0.0
	for name, s := range l.Stats().JobTypes {
		ratios[name] = s.Ratio
		sum += s.Ratio
	}
	require.InDelta(t, 1, sum, 0.001)
	return ratios
}

func requireRatios(t *testing.T, l *limiter, want map[string]float64) {
	t.Helper()
	got := ratiosOf(t, l)
	require.Len(t, got, len(want))
	for name, r := range want {
		require.InDelta(t, r, got[name], 1e-9, "ratio of %s", name)
	}
}

func TestRatio8_1(t *testing.T) {
	abc := jobTypes{"a": {}, "b": {}, "c": {}}
	load := map[string]int{"a": 97, "b": 15, "c": 15}
	const third = 1.0 / 3

	scenario(t, "the busy type grows", func(t *testing.T) {
		rec := &recorder{}
		l := newLimiter(t, config{Models: ratioModel(300), JobTypes: abc, OnEvent: rec.record})
		requireRatios(t, l, map[string]float64{"a": third, "b": third, "c": third})
		ratioHold(t, l, load)
		require.InDelta(t, 0.97, l.Stats().Models["m"].JobTypes["a"].Load, 1e-9)
		require.InDelta(t, 0.15, l.Stats().Models["m"].JobTypes["b"].Load, 1e-9)
		sleepUntil(ratioCycle - 1)
		acquire(t, l, "c")
		requireRatios(t, l, map[string]float64{"a": third, "b": third, "c": third}) // not before its time
		sleepUntil(ratioCycle)
		acquire(t, l, "a")
		got := ratiosOf(t, l)
		require.InDelta(t, third+0.2, got["a"], 1e-9, "the largest change")
		require.Less(t, got["b"], third)
		require.Less(t, got["c"], third)
		require.Equal(t, 160, slots(l, "m", "a"))
		require.InDelta(t, third, l.Stats().JobTypes["a"].InitialRatio, 1e-9)

		events := eventsOf[llmrate.RatiosEvent](rec)
		require.Len(t, events, 1)
		require.Equal(t, got, events[0].Ratios)
	})
	scenario(t, "ten settlements begin a cycle as well", func(t *testing.T) {
		l := newLimiter(t, config{Models: ratioModel(300), JobTypes: abc})
		ratioHold(t, l, load)
		for i := range 10 {
			requireRatios(t, l, map[string]float64{"a": third, "b": third, "c": third})
			if r := acquire(t, l, "b"); i%2 == 0 {
				r.Release()
			} else {
				require.NoError(t, r.Settle(usage{}))
			}
		}
		require.Zero(t, elapsed())
		require.InDelta(t, third+0.2, ratiosOf(t, l)["a"], 1e-9)
	})
	scenario(t, "load counts in tokens just the same", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 300_000}}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 1_000}, "b": {EstimatedTokens: 1_000}, "c": {EstimatedTokens: 1_000}},
		})
		for name, n := range load { // and they have ended long ago
			for range n {
				require.NoError(t, acquire(t, l, name, llmrate.WithEstimate(tokens(1_000))).Settle(tokens(1_000)))
			}
		}
		got := ratiosOf(t, l) // 127 settlements
		require.Greater(t, got["a"], third)
		require.Less(t, got["b"], third)
		require.Less(t, got["c"], third)
	})
	scenario(t, "waiting is full load", func(t *testing.T) { // one large job waits beside a budget that is hardly used
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 300_000}}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 1_000}, "b": {EstimatedTokens: 1_000}},
		})
		acquire(t, l, "a")
		acquire(t, l, "b")
		large := runJobs(t, l, "a", 1, job(0, tokens(1_000)), llmrate.WithEstimate(tokens(160_000)))
		require.GreaterOrEqual(t, l.Stats().Models["m"].JobTypes["a"].Load, 1.0)
		require.Less(t, l.Stats().Models["m"].JobTypes["b"].Load, 0.3)
		large.wait() // the change of ratios lets it in
		require.Equal(t, []time.Duration{ratioCycle}, large.times(""))
		require.InDelta(t, 0.7, ratiosOf(t, l)["a"], 1e-9)
	})
	scenario(t, "memory follows", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{ID: "m"}},
			JobTypes: jobTypes{
				"a": {EstimatedMemory: mib, Ratio: 0.5}, "b": {EstimatedMemory: mib, Ratio: 0.5},
			},
			Memory: llmrate.MemoryConfig{Limit: 10 * mib, Share: 1},
		})
		require.Equal(t, 5, fill(t, l, "a"))
		require.Equal(t, 5, slots(l, "m", "b"))
		sleepUntil(ratioCycle)
		require.Equal(t, 2, fill(t, l, "a"))
		require.InDelta(t, 0.7, ratiosOf(t, l)["a"], 1e-9)
		require.Equal(t, 7, slots(l, "m", "a"))
		require.Equal(t, 3, slots(l, "m", "b"))
	})
}

func TestRatio8_2FixedTypeStays(t *testing.T) {
	scenario(t, "a third of it in use", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: ratioModel(1_000), JobTypes: jobTypes{"a": {}, "b": {}, "c": {Ratio: 0.3, FixedRatio: true}},
		})
		requireRatios(t, l, map[string]float64{"a": 0.35, "b": 0.35, "c": 0.3})
		ratioHold(t, l, map[string]int{"a": 332, "b": 60, "c": 99}) // 95 %, 17 %, 33 %
		ratioRun(t, l, "c", 1)
		got := ratiosOf(t, l)
		require.Greater(t, got["a"], 0.45)
		require.Less(t, got["b"], 0.25)
		require.Equal(t, 0.3, got["c"])
		require.Equal(t, 300, slots(l, "m", "c"))
		ratioRun(t, l, "b", 10)
		require.Equal(t, 0.3, ratiosOf(t, l)["c"])
		require.True(t, l.Stats().JobTypes["c"].Fixed)
		require.False(t, l.Stats().JobTypes["a"].Fixed)
	})
	for name, running := range map[string]int{"idle": 0, "full": 300} {
		scenario(t, name+", and the others disagree with that", func(t *testing.T) {
			l := newLimiter(t, config{
				Models: ratioModel(1_000), JobTypes: jobTypes{"a": {}, "b": {}, "c": {Ratio: 0.3, FixedRatio: true}},
			})
			ratioHold(t, l, map[string]int{"a": 340, "b": 10, "c": running})
			for range 10 {
				ratioRun(t, l, "a", 1)
				require.Equal(t, 0.3, ratiosOf(t, l)["c"])
			}
			require.Greater(t, ratiosOf(t, l)["a"], 0.5)
		})
	}
}

func TestRatio8_3NothingToGiveOrNobodyToReceive(t *testing.T) {
	for name, running := range map[string]map[string]int{
		"all high":               {"a": 100, "b": 80, "c": 75},
		"all low":                {"a": 1, "b": 0, "c": 25},
		"all in the middle":      {"a": 35, "b": 50, "c": 65},
		"high and in the middle": {"a": 100, "b": 50, "c": 65},
		"low and in the middle":  {"a": 35, "b": 2, "c": 65},
	} {
		scenario(t, name, func(t *testing.T) {
			rec := &recorder{}
			l := newLimiter(t, config{
				Models: ratioModel(300), JobTypes: jobTypes{"a": {Ratio: 1.0 / 3}, "b": {Ratio: 1.0 / 3}, "c": {Ratio: 1.0 / 3}}, OnEvent: rec.record,
			})
			ratioHold(t, l, running)
			before := ratiosOf(t, l)
			for range 10 {
				ratioRun(t, l, "a", 1)
				require.Equal(t, before, ratiosOf(t, l))
			}
			require.Empty(t, eventsOf[llmrate.RatiosEvent](rec))
		})
	}
}

func TestRatio8_4OneFlexibleTypeOnly(t *testing.T) {
	for flexible, running := range map[string]map[string]int{"a": {"a": 100, "b": 0, "c": 0}, "b": {"a": 100, "b": 0, "c": 100}} {
		scenario(t, flexible, func(t *testing.T) {
			types := jobTypes{}
			for _, name := range []string{"a", "b", "c"} {
				types[name] = jobType{Ratio: 1.0 / 3, FixedRatio: name != flexible}
			}
			l := newLimiter(t, config{Models: ratioModel(300), JobTypes: types})
			ratioHold(t, l, running)
			before := ratiosOf(t, l)
			for range 10 {
				ratioRun(t, l, flexible, 1)
				require.Equal(t, before, ratiosOf(t, l))
			}
		})
	}
}

func TestRatio8_5NeverBelowTheSmallestRatio(t *testing.T) {
	for name, c := range map[string]struct {
		ratios   llmrate.RatioConfig
		smallest float64
	}{
		"default":    {smallest: llmrate.DefaultMinRatio},
		"configured": {llmrate.RatioConfig{MinRatio: 0.1, MaxChange: 0.07}, 0.1},
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{Models: ratioModel(100), JobTypes: jobTypes{"busy": {}, "idle": {}}, Ratios: c.ratios})
			ratioHold(t, l, map[string]int{"busy": 50})
			last := 0.5
			for range 30 {
				ratioRun(t, l, "busy", 1)
				got := ratiosOf(t, l)
				require.GreaterOrEqual(t, got["idle"], c.smallest-1e-12)
				require.LessOrEqual(t, got["idle"], last)
				require.GreaterOrEqual(t, got["idle"], last-max(c.ratios.MaxChange, llmrate.DefaultMaxChange)-1e-12)
				last = got["idle"]
				fill(t, l, "busy") // up to the load that the new ratio allows
			}
			require.InDelta(t, c.smallest, last, 1e-9, "and it does get there")

			acquireAt := elapsed() // the idle type comes back: one job at once, then its part
			r, err := l.Acquire(t.Context(), "idle")
			require.NoError(t, err)
			require.Equal(t, acquireAt, elapsed())
			r.Release()
		})
	}
}

// When the load turns, the ratios follow.
func TestRatio8_5TheDonorRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter(t, config{Models: ratioModel(100), JobTypes: jobTypes{"a": {}, "b": {}}})
		held := ratioHold(t, l, map[string]int{"a": 50})
		ratioRun(t, l, "a", 5)
		require.InDelta(t, 0.1, ratiosOf(t, l)["b"], 1e-9, "then the load of 50 in 90 is in the middle")
		for _, r := range held["a"] {
			r.Release()
		}
		waiters := runJobs(t, l, "b", 40, job(minute, usage{}))
		for range 5 {
			ratioRun(t, l, "b", 1)
		}
		require.Greater(t, ratiosOf(t, l)["b"], 0.5)
		waiters.wait()
	})
}

func TestRatio8_6FixedTypeUnderHeavyFlexibleLoad(t *testing.T) {
	for name, model := range map[string]modelConfig{
		"concurrency": {ID: "m", Limits: limits{MaxConcurrent: 10}},
		"tokens":      {ID: "m", Limits: limits{TokensPerMinute: 1_000_000, MaxConcurrent: 40}},
		"bucket":      {ID: "m", Limits: limits{TokensPerMinute: 1_000_000, Refill: llmrate.Continuous}},
	} {
		scenario(t, name, func(t *testing.T) {
			l := newLimiter(t, config{
				Models: []modelConfig{model},
				JobTypes: jobTypes{
					"heavy":   {EstimatedTokens: 5_000, MaxWait: maxWait{"m": time.Hour}},
					"heavier": {EstimatedTokens: 9_000, MaxWait: maxWait{"m": time.Hour}},
					"fixed":   {EstimatedTokens: 5_000, Ratio: 0.2, FixedRatio: true, MaxWait: maxWait{"m": time.Hour}},
				},
			})
			ctx, cancel := context.WithCancel(t.Context())
			flexible := 0
			for i := range 60 {
				go func() {
					for ctx.Err() == nil {
						_, _ = l.Run(ctx, []string{"heavy", "heavier"}[i%2], job(700*time.Millisecond, tokens(5_000)))
					}
				}()
			}
			time.Sleep(10 * time.Second)
			for i := range 60 { // three minutes of it; 20 jobs a minute use half of the share
				flexible = max(flexible, l.Stats().JobTypes["heavy"].Waiting)
				res, err := l.Run(t.Context(), "fixed", job(500*time.Millisecond, tokens(5_000)))
				require.NoError(t, err)
				require.LessOrEqual(t, res.Waited, 100*time.Millisecond, fmt.Sprintf("job %d", i))
				time.Sleep(2500 * time.Millisecond)
			}
			require.Greater(t, flexible, 5, "the load is heavy")
			require.Equal(t, 0.2, ratiosOf(t, l)["fixed"])
			cancel()
			synctest.Wait()
		})
	}
}

func TestRatio8_7EachLimiterAdaptsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config{
			Models:   []modelConfig{{ID: "m", Limits: limits{MaxConcurrent: 100, TokensPerMinute: 1_000_000}}},
			JobTypes: jobTypes{"a": {EstimatedTokens: 100}, "b": {EstimatedTokens: 100}},
		}
		first, second, third := newLimiter(t, cfg), newLimiter(t, cfg), newLimiter(t, cfg)
		ratioHold(t, first, map[string]int{"a": 49, "b": 2})
		ratioHold(t, second, map[string]int{"a": 2, "b": 49})
		time.Sleep(ratioCycle)
		for _, l := range []*limiter{first, second, third} {
			acquire(t, l, "a")
		}
		requireRatios(t, first, map[string]float64{"a": 0.7, "b": 0.3})
		requireRatios(t, second, map[string]float64{"a": 0.3, "b": 0.7})
		requireRatios(t, third, map[string]float64{"a": 0.5, "b": 0.5})
		for _, l := range []*limiter{first, second, third} {
			m := l.Stats().Models["m"]
			require.EqualValues(t, 100, m.Concurrency.Limit)
			require.EqualValues(t, 1_000_000, m.TokensPerMinute.Limit)
		}
	})
}
