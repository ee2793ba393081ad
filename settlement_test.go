package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

// Table 4 of SCENARIOS.md: refund and overage.

// oneType is a limiter with the model m and the job type a.
func oneType(t *testing.T, l limits, a jobType) (*limiter, *recorder) {
	t.Helper()
	r := new(recorder)
	if a.MaxWait == nil {
		a.MaxWait = maxWait{"m": 3 * day}
	}
	return newLimiter(t, config{Models: []modelConfig{{ID: "m", Limits: l}}, JobTypes: jobTypes{"a": a}, OnEvent: r.record}), r
}

func model(l *limiter) llmrate.ModelStats { return l.Stats().Models["m"] }

func TestSettlement(t *testing.T) {
	estimate := jobType{EstimatedTokens: 10_000}

	scenario(t, "4.1 a refund lets waiting jobs in at once", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 13_000}, estimate)
		j := runJobs(t, l, "a", 1, job(time.Second, tokens(6000)))
		j.run("a", 3, job(time.Hour, tokens(3500)), llmrate.WithEstimate(tokens(3500)))
		require.EqualValues(t, 10_000, model(l).TokensPerMinute.Used)
		sleepUntil(time.Second)
		require.EqualValues(t, 13_000, model(l).TokensPerMinute.Used)
		require.Equal(t, []time.Duration{0, time.Second, time.Second}, j.times(""))
	})
	scenario(t, "4.1 the counter", func(t *testing.T) {
		l, r := oneType(t, limits{TokensPerMinute: 100_000}, estimate)
		runJobs(t, l, "a", 1, job(59*time.Second, tokens(6000))).wait()
		st := model(l).TokensPerMinute
		require.Equal(t, llmrate.WindowStats{Used: 6000, Limit: 100_000, Remaining: 94_000, ResetsAt: st.ResetsAt}, st)
		require.True(t, st.ResetsAt.Equal(midnight.Add(minute)))
		require.Empty(t, eventsOf[llmrate.OverageEvent](r))
	})

	scenario(t, "4.2 no usage at all refunds everything", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 100_000, RequestsPerMinute: 10, TokensPerDay: 100_000, RequestsPerDay: 10}, estimate)
		for range 3 {
			runJobs(t, l, "a", 10, job(time.Second, usage{})).wait()
			requireUsed(t, l, 0, 0)
		}
		require.Equal(t, 3*time.Second, elapsed())
		for range 10 {
			require.NoError(t, acquire(t, l, "a").Settle(usage{}))
		}
		require.Equal(t, 10, fill(t, l, "a"))
	})

	scenario(t, "4.3 fewer requests", func(t *testing.T) {
		l, r := oneType(t, limits{RequestsPerMinute: 100, RequestsPerDay: 100}, jobType{EstimatedRequests: 5})
		res := acquire(t, l, "a")
		requireUsed(t, l, 5, 0)
		require.NoError(t, res.Settle(usage{Requests: 2}))
		requireUsed(t, l, 2, 0)
		require.Empty(t, eventsOf[llmrate.OverageEvent](r))
	})
	scenario(t, "4.3 no count of requests beside tokens means the estimate", func(t *testing.T) {
		l, r := oneType(t, limits{RequestsPerMinute: 100, RequestsPerDay: 100, TokensPerMinute: 100_000, TokensPerDay: 100_000}, jobType{EstimatedTokens: 10_000, EstimatedRequests: 5})
		require.NoError(t, acquire(t, l, "a").Settle(usage{OutputTokens: 1}))
		requireUsed(t, l, 5, 1)
		require.NoError(t, acquire(t, l, "a", llmrate.WithEstimate(usage{Requests: 3})).Settle(usage{CachedTokens: 1}))
		requireUsed(t, l, 8, 2)
		require.NoError(t, acquire(t, l, "a").Settle(usage{Requests: 7, InputTokens: 1}))
		requireUsed(t, l, 15, 3)
		require.Equal(t, []llmrate.OverageEvent{{
			Model: "m", JobType: "a", JobID: eventsOf[llmrate.StartedEvent](r)[2].JobID, Resource: "requests", Estimated: 5, Actual: 7, Excess: 2,
		}}, eventsOf[llmrate.OverageEvent](r))
	})

	scenario(t, "4.4 a refund after the end of the minute reaches the day only", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 100_000, TokensPerDay: 1_000_000}, estimate)
		sleepUntil(30 * time.Second)
		j := runJobs(t, l, "a", 1, job(minute, tokens(6000)))
		sleepUntil(minute - 1)
		require.EqualValues(t, 10_000, model(l).TokensPerMinute.Used)
		require.EqualValues(t, 10_000, model(l).TokensPerDay.Used)
		sleepUntil(minute)
		require.EqualValues(t, 0, model(l).TokensPerMinute.Used)
		j.wait()
		require.EqualValues(t, 0, model(l).TokensPerMinute.Used)
		require.EqualValues(t, 6000, model(l).TokensPerDay.Used)
		require.Equal(t, 10, fill(t, l, "a"))
	})
	scenario(t, "4.4 a late refund takes nothing from what others are charged", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 100_000}, estimate)
		r := acquire(t, l, "a")
		sleepUntil(minute)
		acquire(t, l, "a")
		require.NoError(t, r.Settle(usage{}))
		require.EqualValues(t, 10_000, model(l).TokensPerMinute.Used)
	})

	overage := func(r *recorder) llmrate.OverageEvent {
		return llmrate.OverageEvent{
			Model: "m", JobType: "a", JobID: eventsOf[llmrate.StartedEvent](r)[0].JobID,
			Resource: "tokens", Estimated: 10_000, Actual: 15_000, Excess: 5000,
		}
	}
	scenario(t, "4.5 an excess in the same minute", func(t *testing.T) {
		l, r := oneType(t, limits{TokensPerMinute: 100_000, TokensPerDay: 1_000_000}, estimate)
		runJobs(t, l, "a", 1, job(time.Second, tokens(15_000))).wait()
		requireUsed(t, l, 0, 15_000)
		require.Equal(t, []llmrate.OverageEvent{overage(r)}, eventsOf[llmrate.OverageEvent](r))
	})
	scenario(t, "4.6 an excess in the next minute", func(t *testing.T) {
		l, r := oneType(t, limits{TokensPerMinute: 100_000, TokensPerDay: 1_000_000}, estimate)
		sleepUntil(30 * time.Second)
		j := runJobs(t, l, "a", 1, job(minute, tokens(15_000)))
		sleepUntil(minute - 1)
		require.EqualValues(t, 10_000, model(l).TokensPerMinute.Used)
		j.wait()
		require.EqualValues(t, 5000, model(l).TokensPerMinute.Used)
		require.EqualValues(t, 15_000, model(l).TokensPerDay.Used)
		require.Equal(t, []llmrate.OverageEvent{overage(r)}, eventsOf[llmrate.OverageEvent](r))
		sleepUntil(2 * minute)
		require.EqualValues(t, 0, model(l).TokensPerMinute.Used)
		require.EqualValues(t, 15_000, model(l).TokensPerDay.Used)
	})
	scenario(t, "4.6 an excess many minutes later", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 100_000}, estimate)
		runJobs(t, l, "a", 1, job(17*minute, tokens(15_000))).wait()
		require.EqualValues(t, 5000, model(l).TokensPerMinute.Used)
	})

	for _, row := range []struct {
		name string
		end  time.Duration
		used int64
	}{
		{"1 ms before", minute - time.Millisecond, 6000},
		{"1 ms after", minute + time.Millisecond, 0},
		{"1 ns before", minute - 1, 6000},
		{"at", minute, 0},
	} {
		scenario(t, "4.7 a job that ends "+row.name+" the boundary", func(t *testing.T) {
			l, _ := oneType(t, limits{TokensPerMinute: 100_000, RequestsPerMinute: 100}, jobType{EstimatedTokens: 10_000, EstimatedRequests: 3})
			held := acquire(t, l, "a") // shows that a refund comes from its own charge only
			sleepUntil(30 * time.Second)
			runJobs(t, l, "a", 1, job(row.end-elapsed(), usage{Requests: 1, InputTokens: 6000})).wait()
			requests := int64(0)
			if row.used > 0 {
				requests, row.used = 3+1, 10_000+row.used
			}
			require.EqualValues(t, row.used, model(l).TokensPerMinute.Used)
			require.EqualValues(t, requests, model(l).RequestsPerMinute.Used)
			held.Release()
			require.EqualValues(t, row.used, model(l).TokensPerMinute.Used)
		})
	}

	scenario(t, "4.8 input, cached and output tokens all count", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 100_000, InputTokensPerMinute: 100_000, OutputTokensPerMinute: 100_000}, estimate)
		runJobs(t, l, "a", 1, job(0, usage{Requests: 1, InputTokens: 3000, OutputTokens: 2000, CachedTokens: 1000})).wait()
		require.EqualValues(t, 6000, model(l).TokensPerMinute.Used)
		require.EqualValues(t, 3000, model(l).InputTokensPerMinute.Used, "input excludes cached")
		require.EqualValues(t, 2000, model(l).OutputTokensPerMinute.Used)
	})
	scenario(t, "4.8 unless the model counts otherwise", func(t *testing.T) {
		l := newLimiter(t, config{
			Models: []modelConfig{{
				ID: "m", Limits: limits{TokensPerMinute: 100_000},
				CountTokens: func(u usage) int64 { return u.InputTokens + 2*u.OutputTokens },
			}},
			JobTypes: jobTypes{"a": {EstimatedInputTokens: 1000, EstimatedOutputTokens: 4000}},
		})
		r := acquire(t, l, "a")
		require.EqualValues(t, 9000, model(l).TokensPerMinute.Used)
		require.NoError(t, r.Settle(usage{InputTokens: 3000, OutputTokens: 2000, CachedTokens: 1000}))
		require.EqualValues(t, 7000, model(l).TokensPerMinute.Used)
	})

	scenario(t, "4.9 overage beyond the limit", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 20_000}, estimate)
		j := runJobs(t, l, "a", 2, job(time.Second, tokens(15_000)))
		sleepUntil(time.Second)
		st := model(l).TokensPerMinute
		require.EqualValues(t, 30_000, st.Used)
		require.EqualValues(t, 0, st.Remaining)
		j.run("a", 1, job(0, tokens(1)), llmrate.WithEstimate(tokens(1)))
		j.run("a", 2, job(time.Hour, tokens(10_000)))
		sleepUntil(minute - 1)
		require.Len(t, j.begins(""), 2)
		requireFull(t, l, "a", llmrate.WithEstimate(tokens(1)))
		sleepUntil(minute) // the debt ends with the window
		require.Equal(t, []time.Duration{0, 0, minute, minute}, j.times(""))
		require.EqualValues(t, 10_001, model(l).TokensPerMinute.Used)
	})
	scenario(t, "4.9 overage beyond the limit stops jobs that reserve nothing as well", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 20_000, TokensPerDay: 100_000}, jobType{})
		require.NoError(t, acquire(t, l, "a").Settle(tokens(20_000)))
		require.NoError(t, acquire(t, l, "a").Settle(tokens(1)))
		j := runJobs(t, l, "a", 1, job(0, tokens(100_000)))
		requireFull(t, l, "a")
		j.wait()
		j.run("a", 1, job(0, tokens(1)))
		j.wait()
		require.Equal(t, []time.Duration{minute, day}, j.times(""))
	})
	scenario(t, "4.9 a refund first pays the debt of others", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 20_000}, estimate)
		first, second := acquire(t, l, "a"), acquire(t, l, "a")
		j := runJobs(t, l, "a", 1, job(time.Hour, usage{}), llmrate.WithEstimate(tokens(1000)))
		require.NoError(t, first.Settle(tokens(15_000)))
		require.NoError(t, second.Settle(tokens(6000)))
		require.EqualValues(t, 21_000, model(l).TokensPerMinute.Used)
		require.EqualValues(t, 0, model(l).TokensPerMinute.Remaining)
		require.Empty(t, j.begins(""))
	})

	scenario(t, "4.10 a job that reserved nothing is charged when it ends", func(t *testing.T) {
		l, r := oneType(t, limits{TokensPerMinute: 20_000, TokensPerDay: 100_000}, jobType{})
		j := runJobs(t, l, "a", 3, job(30*time.Second, tokens(15_000)))
		require.Len(t, j.begins(""), 3)
		requireUsed(t, l, 0, 0)
		j.wait()
		requireUsed(t, l, 0, 45_000)
		require.EqualValues(t, 0, model(l).TokensPerMinute.Remaining)
		require.Empty(t, eventsOf[llmrate.OverageEvent](r), "nothing estimated, nothing exceeded")
		runJobs(t, l, "a", 1, job(minute, tokens(15_000))).wait()
		require.EqualValues(t, 15_000, model(l).TokensPerMinute.Used, "in the minute in which it ended")
		require.EqualValues(t, 60_000, model(l).TokensPerDay.Used)
	})
}

// requireUsed checks what is charged in the minute and in the day, which have to agree where both are limited.
func requireUsed(t *testing.T, l *limiter, requests, tokens int64) {
	t.Helper()
	m := model(l)
	for _, w := range []struct {
		name string
		llmrate.WindowStats
		want int64
	}{
		{"requests a minute", m.RequestsPerMinute, requests}, {"requests a day", m.RequestsPerDay, requests},
		{"tokens a minute", m.TokensPerMinute, tokens}, {"tokens a day", m.TokensPerDay, tokens},
	} {
		if w.Limit > 0 {
			require.Equal(t, w.want, w.Used, w.name)
		}
	}
}

// The rows of the table that depend on a window, in each kind of fixed window: a job that reserves 100 of the resource
// that is limited to 1000.
func TestSettlementInEveryWindow(t *testing.T) {
	custom := func(r llmrate.Resource, per time.Duration) limits {
		return limits{Custom: []llmrate.CustomLimit{{Resource: r, Per: per, Max: 1000}}}
	}
	ofCustom := func(m llmrate.ModelStats) llmrate.WindowStats { return m.Custom[0] }
	reserve := jobType{EstimatedRequests: 100, EstimatedInputTokens: 100, EstimatedOutputTokens: 100, EstimatedTokens: 200}
	one := func(n int64) usage { return usage{Requests: 100, InputTokens: n, OutputTokens: 100} }
	for _, row := range []struct {
		name     string
		limits   limits
		per      time.Duration
		stats    func(llmrate.ModelStats) llmrate.WindowStats
		resource string
		total    int64 // tokens beside those that vary
		use      func(n int64) usage
	}{
		{"requests a minute", limits{RequestsPerMinute: 1000}, minute, func(m llmrate.ModelStats) llmrate.WindowStats { return m.RequestsPerMinute }, "requests", 0, func(n int64) usage { return usage{Requests: n, InputTokens: 100} }},
		{"requests a day", limits{RequestsPerDay: 1000}, day, func(m llmrate.ModelStats) llmrate.WindowStats { return m.RequestsPerDay }, "requests", 0, func(n int64) usage { return usage{Requests: n, InputTokens: 100} }},
		{"tokens a minute", limits{TokensPerMinute: 1000}, minute, func(m llmrate.ModelStats) llmrate.WindowStats { return m.TokensPerMinute }, "tokens", 100, one},
		{"tokens a day", limits{TokensPerDay: 1000}, day, func(m llmrate.ModelStats) llmrate.WindowStats { return m.TokensPerDay }, "tokens", 100, one},
		{"input tokens a minute", limits{InputTokensPerMinute: 1000}, minute, func(m llmrate.ModelStats) llmrate.WindowStats { return m.InputTokensPerMinute }, "input_tokens", 0, one},
		{"output tokens a minute", limits{OutputTokensPerMinute: 1000}, minute, func(m llmrate.ModelStats) llmrate.WindowStats { return m.OutputTokensPerMinute }, "output_tokens", 0, func(n int64) usage { return usage{Requests: 100, InputTokens: 100, OutputTokens: n} }},
		{"requests in 10 s", custom(llmrate.Requests, 10*time.Second), 10 * time.Second, ofCustom, "requests", 0, func(n int64) usage { return usage{Requests: n, InputTokens: 100} }},
		{"tokens in 10 s", custom(llmrate.Tokens, 10*time.Second), 10 * time.Second, ofCustom, "tokens", 100, one},
		{"input tokens in 10 s", custom(llmrate.InputTokens, 10*time.Second), 10 * time.Second, ofCustom, "input_tokens", 0, one},
		{"output tokens in an hour", custom(llmrate.OutputTokens, time.Hour), time.Hour, ofCustom, "output_tokens", 0, func(n int64) usage { return usage{Requests: 100, OutputTokens: n} }},
	} {
		used := func(l *limiter) int64 { return row.stats(model(l)).Used }
		mid, end := 17*day+row.per/2, 17*day+row.per
		estimate := 100 + row.total
		for _, settle := range []struct {
			name   string
			at     time.Duration
			actual int64
			want   int64
		}{
			{"refund", end - 1, 60, 60 + row.total},
			{"refund after the end", end, 60, 0},
			{"excess", end - 1, 150, 150 + row.total},
			{"excess after the end", end, 150, 50},
			{"excess long after the end", end + 3*row.per + 1, 150, 50},
			{"exact", end - 1, 100, estimate},
			{"exact after the end", end, 100, 0},
		} {
			scenario(t, row.name+": "+settle.name, func(t *testing.T) {
				l, r := oneType(t, row.limits, reserve)
				sleepUntil(mid)
				held := acquire(t, l, "a")
				require.Equal(t, estimate, used(l))
				st := row.stats(model(l))
				require.Equal(t, 1000-estimate, st.Remaining)
				require.True(t, st.ResetsAt.Equal(midnight.Add(end)), st.ResetsAt)
				sleepUntil(settle.at)
				require.NoError(t, held.Settle(row.use(settle.actual)))
				require.Equal(t, settle.want, used(l))
				var events []llmrate.OverageEvent
				if settle.actual > 100 {
					events = []llmrate.OverageEvent{{
						Model: "m", JobType: "a", JobID: held.JobID(), Resource: row.resource,
						Estimated: estimate, Actual: settle.actual + row.total, Excess: 50,
					}}
				}
				require.Equal(t, events, eventsOf[llmrate.OverageEvent](r))
				sleepUntil(elapsed() + row.per)
				require.Zero(t, used(l))
			})
		}
		scenario(t, row.name+": no more than the limit, and all of it, in each window", func(t *testing.T) {
			l, _ := oneType(t, row.limits, reserve)
			fits := int(1000 / estimate)
			j := runJobs(t, l, "a", 3*fits, job(0, row.use(100)))
			j.wait()
			require.Equal(t, slices.Concat(repeat(fits, 0), repeat(fits, row.per), repeat(fits, 2*row.per)), j.times(""))
		})
		scenario(t, row.name+": a refund lets the next in", func(t *testing.T) {
			l, _ := oneType(t, row.limits, reserve)
			fits := int(1000 / estimate)
			sleepUntil(row.per / 4)
			j := runJobs(t, l, "a", fits, job(row.per/4, usage{}))
			j.run("a", fits, job(row.per/8, row.use(100)))
			j.run("a", 1, job(0, row.use(100)))
			j.wait()
			require.Equal(t, slices.Concat(repeat(fits, row.per/4), repeat(fits, row.per/2), []time.Duration{row.per}), j.times(""))
		})
	}

	scenario(t, "one event for each resource, not for each limit", func(t *testing.T) {
		l, r := oneType(t, limits{
			RequestsPerMinute: 1000, RequestsPerDay: 1000, TokensPerMinute: 1000, TokensPerDay: 1000, InputTokensPerMinute: 1000, OutputTokensPerMinute: 1000,
			Custom: []llmrate.CustomLimit{{Resource: llmrate.Tokens, Per: time.Hour, Max: 1000}, {Resource: llmrate.InputTokens, Per: time.Hour, Max: 1000}},
		}, reserve)
		require.NoError(t, acquire(t, l, "a").Settle(usage{Requests: 101, InputTokens: 102, OutputTokens: 103}))
		excess := map[string]int64{}
		for _, e := range eventsOf[llmrate.OverageEvent](r) {
			require.NotContains(t, excess, e.Resource)
			excess[e.Resource] = e.Excess
		}
		require.Equal(t, map[string]int64{"requests": 1, "tokens": 5, "input_tokens": 2, "output_tokens": 3}, excess)
	})

	scenario(t, "a total stands for input and for output", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 1000, InputTokensPerMinute: 1000, OutputTokensPerMinute: 1000}, jobType{EstimatedTokens: 300})
		r := acquire(t, l, "a")
		m := model(l)
		require.Equal(t, [3]int64{300, 300, 300}, [3]int64{m.TokensPerMinute.Used, m.InputTokensPerMinute.Used, m.OutputTokensPerMinute.Used})
		require.NoError(t, r.Settle(usage{InputTokens: 200, OutputTokens: 50}))
		m = model(l)
		require.Equal(t, [3]int64{250, 200, 50}, [3]int64{m.TokensPerMinute.Used, m.InputTokensPerMinute.Used, m.OutputTokensPerMinute.Used})
	})

	scenario(t, "every limit in its own window", func(t *testing.T) {
		l, _ := oneType(t, limits{
			RequestsPerMinute: 1000, TokensPerMinute: 1000, TokensPerDay: 10_000,
			Custom: []llmrate.CustomLimit{{Resource: llmrate.Tokens, Per: 10 * time.Second, Max: 1000}, {Resource: llmrate.Requests, Per: time.Second, Max: 1000}},
		}, jobType{EstimatedTokens: 200, EstimatedRequests: 10})
		sleepUntil(time.Second / 2)
		r := acquire(t, l, "a")
		sleepUntil(15 * time.Second) // the windows of 10 s and of 1 s are over
		require.NoError(t, r.Settle(usage{Requests: 13, InputTokens: 50}))
		m := model(l)
		require.EqualValues(t, 13, m.RequestsPerMinute.Used)
		require.EqualValues(t, 50, m.TokensPerMinute.Used)
		require.EqualValues(t, 50, m.TokensPerDay.Used)
		require.EqualValues(t, 0, m.Custom[0].Used)
		require.EqualValues(t, 3, m.Custom[1].Used)
	})

	scenario(t, "a day binds whatever the minute allows", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 500, TokensPerDay: 1000}, jobType{EstimatedTokens: 100})
		j := runJobs(t, l, "a", 12, job(0, tokens(100)))
		j.wait()
		require.Equal(t, slices.Concat(repeat(5, 0), repeat(5, minute), repeat(2, day)), j.times(""))
	})
}

// Settling is final, and what cannot be settled changes nothing.
func TestSettlementOnce(t *testing.T) {
	estimate := jobType{EstimatedTokens: 10_000, EstimatedMemory: mib}
	all := limits{TokensPerMinute: 100_000, TokensPerDay: 100_000, RequestsPerMinute: 100, MaxConcurrent: 10}

	scenario(t, "the first end counts", func(t *testing.T) {
		for name, ends := range map[string]struct {
			first func(*llmrate.Reservation[string]) error
			used  int64
		}{
			"Settle":  {func(r *llmrate.Reservation[string]) error { return r.Settle(tokens(6000)) }, 6000},
			"refund":  {func(r *llmrate.Reservation[string]) error { return r.Settle(usage{}) }, 0},
			"overage": {func(r *llmrate.Reservation[string]) error { return r.Settle(tokens(15_000)) }, 15_000},
			"Release": {func(r *llmrate.Reservation[string]) error { r.Release(); return nil }, 10_000},
		} {
			l, _ := oneType(t, all, estimate)
			other := acquire(t, l, "a")
			r := acquire(t, l, "a")
			require.NoError(t, ends.first(r), name)
			before := l.Stats()
			require.EqualValues(t, 10_000+ends.used, model(l).TokensPerMinute.Used, name)
			require.EqualValues(t, 1, model(l).Concurrency.Active, name)
			for _, again := range []usage{{}, tokens(6000), tokens(50_000)} {
				require.ErrorIs(t, r.Settle(again), llmrate.ErrSettled, name)
				r.Release()
			}
			require.Equal(t, before, l.Stats(), name)
			other.Release()
		}
	})
	scenario(t, "a usage out of range changes nothing", func(t *testing.T) {
		l, r := oneType(t, all, estimate)
		res := acquire(t, l, "a")
		before := l.Stats()
		for field, bad := range map[string]usage{
			"Usage.Requests":     {Requests: -1},
			"Usage.InputTokens":  {Requests: 1, InputTokens: -1},
			"Usage.CachedTokens": {CachedTokens: llmrate.MaxAmount + 1},
			"Usage.OutputTokens": {OutputTokens: -1 << 63},
		} {
			fault, ok := errors.AsType[*llmrate.FieldError](res.Settle(bad))
			require.True(t, ok)
			require.Equal(t, field, fault.Field)
			require.Equal(t, before, l.Stats())
		}
		require.NoError(t, res.Settle(tokens(6000)))
		requireUsed(t, l, 1, 6000)
		require.Empty(t, eventsOf[llmrate.OverageEvent](r))
	})
	scenario(t, "usages up to the largest add up without overflow", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: llmrate.MaxAmount, TokensPerDay: llmrate.MaxAmount}, jobType{})
		const huge = llmrate.MaxAmount
		for _, r := range []*llmrate.Reservation[string]{acquire(t, l, "a"), acquire(t, l, "a"), acquire(t, l, "a")} {
			require.NoError(t, r.Settle(usage{Requests: huge, InputTokens: huge, CachedTokens: huge, OutputTokens: huge}))
		}
		requireUsed(t, l, 0, 9*huge)
		require.Zero(t, model(l).TokensPerMinute.Remaining)
	})
	scenario(t, "after all jobs the charge is the sum of the usage", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 1_000_000, TokensPerDay: 1_000_000, RequestsPerMinute: 1000, MaxConcurrent: 7}, estimate)
		sum := int64(0)
		j := runJobs(t, l, "a", 0, nil)
		for i := range int64(50) {
			actual := i * 797 % 15_000
			sum += actual
			j.run("a", 1, job(time.Duration(i*131%977)*time.Millisecond, usage{Requests: 1, OutputTokens: actual}))
		}
		j.wait()
		requireUsed(t, l, 50, sum)
	})
}

// A charge to a bucket, and when.
type charge struct {
	at time.Duration
	n  int64
}

// requireBucket checks that no stretch of time has more than the burst and what refills in it.
func requireBucket(t *testing.T, charges []charge, burst, rate int64, per time.Duration) {
	t.Helper()
	for i := range charges {
		sum := int64(0)
		for _, c := range charges[i:] {
			sum += c.n
			stretch := c.at - charges[i].at
			if most := float64(burst) + float64(rate)*float64(stretch)/float64(per); float64(sum) > most {
				require.Failf(t, "too much", "%d from %s to %s, at most %g", sum, charges[i].at, c.at, most)
			}
		}
	}
}

// A Continuous limit: a bucket that refills evenly.
func TestSettlementInABucket(t *testing.T) {
	const second = time.Second
	bucket := limits{TokensPerMinute: 6000, Refill: llmrate.Continuous} // 100 a second
	used := func(l *limiter) int64 { return model(l).TokensPerMinute.Used }

	for _, row := range []struct {
		name   string
		refill llmrate.Refill
		burst  int64
	}{
		{"the whole minute", llmrate.Continuous, 6000},
		{"20 s", llmrate.Continuous.WithBurst(20 * second), 2000},
		{"1 s", llmrate.Continuous.WithBurst(second), 100},
		{"more than the minute", llmrate.Continuous.WithBurst(time.Hour), 6000},
	} {
		for _, estimate := range []int64{100, 70, 7} {
			scenario(t, fmt.Sprintf("a burst of %s, in jobs of %d", row.name, estimate), func(t *testing.T) {
				l, _ := oneType(t, limits{TokensPerMinute: 6000, Refill: row.refill}, jobType{EstimatedTokens: estimate})
				sleepUntil(77 * second) // edges of minutes mean nothing
				n := int(row.burst/estimate) + 200
				j := runJobs(t, l, "a", n, job(0, tokens(estimate)))
				j.wait()
				var charges []charge
				for i, at := range j.times("") {
					charges = append(charges, charge{at, estimate})
					// Job i starts as soon as the bucket has held what all up to it need, and not earlier.
					missing := max(0, int64(i+1)*estimate-row.burst)
					require.InDelta(t, 77*second+time.Duration(missing)*second/100, at, 2, "job %d", i)
				}
				requireBucket(t, charges, row.burst, 6000, minute)
				require.Equal(t, row.burst, model(l).TokensPerMinute.Limit)
			})
		}
	}
	scenario(t, "a burst is for the minute limits; the day's bucket holds the day's worth", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 6000, TokensPerDay: 9000, Refill: llmrate.Continuous.WithBurst(second)}, jobType{EstimatedTokens: 100})
		m := model(l)
		require.EqualValues(t, 100, m.TokensPerMinute.Limit)
		require.EqualValues(t, 9000, m.TokensPerDay.Limit)
		j := runJobs(t, l, "a", 91, job(0, tokens(100)))
		j.wait()
		require.Equal(t, 89*second, j.times("")[89])
		require.InDelta(t, 16*minute, j.times("")[90], float64(second), "9000 a day are 100 in 16 minutes")
	})
	scenario(t, "a custom bucket", func(t *testing.T) {
		l, _ := oneType(t, limits{Custom: []llmrate.CustomLimit{{Resource: llmrate.Requests, Per: 10 * second, Max: 100, Refill: llmrate.Continuous.WithBurst(second)}}}, jobType{EstimatedRequests: 10})
		j := runJobs(t, l, "a", 5, job(0, usage{Requests: 10}))
		j.wait()
		require.Equal(t, []time.Duration{0, second, 2 * second, 3 * second, 4 * second}, j.times(""))
		require.EqualValues(t, 10, model(l).Custom[0].Limit)
	})

	scenario(t, "the counter drains", func(t *testing.T) {
		l, _ := oneType(t, bucket, jobType{EstimatedTokens: 6000})
		acquire(t, l, "a").Release()
		for s := range 60 {
			sleepUntil(time.Duration(s) * second)
			require.EqualValues(t, 6000-100*s, used(l))
			require.True(t, model(l).TokensPerMinute.ResetsAt.Equal(midnight.Add(minute)))
		}
		sleepUntil(time.Hour)
		require.EqualValues(t, 0, used(l))
		require.EqualValues(t, 6000, model(l).TokensPerMinute.Remaining)
	})
	scenario(t, "an early refund", func(t *testing.T) {
		l, _ := oneType(t, bucket, jobType{EstimatedTokens: 6000})
		j := runJobs(t, l, "a", 1, job(5*second, tokens(2000)))
		j.run("a", 1, job(0, tokens(1)), llmrate.WithEstimate(tokens(4000)))
		sleepUntil(5*second - 1)
		require.Len(t, j.begins(""), 1)
		j.wait()
		require.Equal(t, []time.Duration{0, 5 * second}, j.times(""))
		require.EqualValues(t, 2000-500+1, used(l))
	})
	scenario(t, "a refund does not lift the bucket above its burst", func(t *testing.T) {
		l, _ := oneType(t, bucket, jobType{EstimatedTokens: 5000})
		r := acquire(t, l, "a")
		sleepUntil(40 * second)
		require.EqualValues(t, 1000, used(l))
		require.NoError(t, r.Settle(tokens(500))) // 4500 too much, of which 3500 were lost to a full bucket
		require.EqualValues(t, 0, used(l))
		require.EqualValues(t, 6000, model(l).TokensPerMinute.Remaining)
		require.Equal(t, 6, fill(t, l, "a", llmrate.WithEstimate(tokens(1000))))
	})
	scenario(t, "a late refund gives nothing back that time has already given", func(t *testing.T) {
		l, _ := oneType(t, bucket, jobType{EstimatedTokens: 6000})
		r := acquire(t, l, "a")
		sleepUntil(minute) // the bucket is full again
		acquire(t, l, "a")
		sleepUntil(61 * second)
		require.NoError(t, r.Settle(usage{}))
		require.EqualValues(t, 5900, used(l))
		requireFull(t, l, "a", llmrate.WithEstimate(tokens(101)))
	})
	scenario(t, "a late refund gives back the part that time has not given", func(t *testing.T) {
		l, _ := oneType(t, bucket, jobType{EstimatedTokens: 5000})
		r := acquire(t, l, "a")
		sleepUntil(30 * second) // 2000 left to drain
		acquire(t, l, "a", llmrate.WithEstimate(tokens(3000)))
		sleepUntil(35 * second)
		require.EqualValues(t, 4500, used(l))
		// Charged 1000 from the start, the bucket would have been full when the second job came.
		require.NoError(t, r.Settle(tokens(1000)))
		require.EqualValues(t, 3000-500, used(l))
	})
	scenario(t, "a debt is refilled first", func(t *testing.T) {
		l, r := oneType(t, bucket, jobType{EstimatedTokens: 6000})
		j := runJobs(t, l, "a", 1, job(10*second, tokens(9000)))
		sleepUntil(10 * second)
		require.EqualValues(t, 6000-1000+3000, used(l))
		require.EqualValues(t, 0, model(l).TokensPerMinute.Remaining)
		require.Len(t, eventsOf[llmrate.OverageEvent](r), 1)
		require.EqualValues(t, 3000, eventsOf[llmrate.OverageEvent](r)[0].Excess)
		j.run("a", 1, job(0, tokens(1)), llmrate.WithEstimate(tokens(1)))
		j.wait()
		require.Equal(t, []time.Duration{0, 30*second + second/100}, j.times(""))
	})
	scenario(t, "unknown usage keeps the charge, which drains", func(t *testing.T) {
		l, _ := oneType(t, bucket, jobType{EstimatedTokens: 6000})
		r := acquire(t, l, "a")
		sleepUntil(10 * second)
		r.Release()
		require.EqualValues(t, 5000, used(l))
	})

	for seed := range uint64(20) {
		scenario(t, fmt.Sprintf("never fuller than in hindsight, seed %d", seed), func(t *testing.T) { hindsight(t, seed, 30, "a") })
		scenario(t, fmt.Sprintf("never fuller than in hindsight, many jobs, seed %d", seed), func(t *testing.T) { hindsight(t, seed, 300, "a") })
		scenario(t, fmt.Sprintf("never fuller than in hindsight, two job types, seed %d", seed), func(t *testing.T) { hindsight(t, seed, 30, "a", "b") })
		scenario(t, fmt.Sprintf("never fuller than in hindsight, two job types, many jobs, seed %d", seed), func(t *testing.T) { hindsight(t, seed, 300, "a", "b") })
	}
}

// hindsight starts and ends jobs of the given types at random and compares the bucket, and each type's part of it, with
// an oracle that replays the whole history from the outside: every job charged when it started what it is known to use
// by now, except that an excess is charged when it shows.
func hindsight(t *testing.T, seed uint64, n int, types ...string) {
	const size = 10_000 // of the bucket, which drains by one token in each millisecond
	cfg := config{
		Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 60_000, Refill: llmrate.Continuous.WithBurst(10 * time.Second)}}},
		JobTypes: jobTypes{},
	}
	for _, name := range types {
		cfg.JobTypes[name] = jobType{FixedRatio: true, EstimatedTokens: 1}
	}
	l := newLimiter(t, cfg)
	history := map[string][]charge{} // by job type, and of all under ""
	level := func(name string) float64 {
		rate := 1.
		if name != "" {
			rate /= float64(len(types))
		}
		level, at := 0., time.Duration(0)
		for _, c := range append(slices.Clip(history[name]), charge{elapsed(), 0}) {
			level = max(0, level-rate*float64((c.at-at)/time.Millisecond)) + float64(c.n)
			at = c.at
		}
		return level
	}
	// Up to 30 charges are remembered one by one; each rounds its refund by less than a token.
	check := func() {
		used := model(l).TokensPerMinute.Used
		require.GreaterOrEqual(t, used, int64(level("")))
		if n <= 30 {
			require.Equal(t, int64(level("")), used)
		}
		for _, name := range types {
			part := float64(size / len(types))
			used := model(l).JobTypes[name].Load * part
			require.GreaterOrEqual(t, used, level(name)-1e-6, name)
			if n <= 30 {
				require.InDelta(t, level(name), used, 30, name)
			}
		}
	}

	type open struct {
		r        *llmrate.Reservation[string]
		jobType  string
		estimate int64
		index    map[string]int
	}
	var running []open
	rnd := rand.New(rand.NewPCG(seed, 0))
	overage := seed%2 == 1
	for started := 0; started < n || len(running) > 0; {
		if started < n && rnd.IntN(2) == 0 {
			started++
			name, estimate := types[rnd.IntN(len(types))], rnd.Int64N(3000)+1
			fits := float64(estimate) <= size-level("")
			r, err := l.TryAcquire(t.Context(), name, llmrate.WithEstimate(usage{OutputTokens: estimate}))
			if n <= 30 && len(types) == 1 {
				require.Equal(t, fits, err == nil, "%v", err)
			}
			if err == nil {
				require.True(t, fits)
				o := open{r, name, estimate, map[string]int{}}
				for _, h := range []string{"", name} {
					o.index[h] = len(history[h])
					history[h] = append(history[h], charge{elapsed(), estimate})
				}
				running = append(running, o)
			}
		} else if len(running) > 0 {
			i := rnd.IntN(len(running))
			o := running[i]
			running = slices.Delete(running, i, i+1)
			actual := rnd.Int64N(o.estimate + 1)
			if overage {
				actual += rnd.Int64N(o.estimate)
			}
			require.NoError(t, o.r.Settle(usage{Requests: 1, OutputTokens: actual}))
			for h, index := range o.index {
				if actual <= o.estimate {
					history[h][index].n = actual
				} else {
					history[h] = append(history[h], charge{elapsed(), actual - o.estimate})
				}
			}
		}
		check()
		time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond)
	}
	if !overage {
		requireBucket(t, history[""], size, 60_000, minute)
	}
}

// A job type's part of a bucket is settled like the bucket itself.
func TestSettlementInAShareOfABucket(t *testing.T) {
	scenario(t, "a late refund", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 12_000, Refill: llmrate.Continuous}}},
			JobTypes: jobTypes{"a": fixed(6000, 0.5), "b": fixed(6000, 0.5)},
		})
		r := acquire(t, l, "a") // all of its part, which refills at 100 a second
		sleepUntil(minute)
		acquire(t, l, "a")
		sleepUntil(61 * time.Second)
		require.NoError(t, r.Settle(usage{}))
		requireFull(t, l, "a", llmrate.WithEstimate(tokens(101)))
		acquire(t, l, "a", llmrate.WithEstimate(tokens(100)))
		acquire(t, l, "b")
	})
	scenario(t, "a late refund to a bucket that others keep low", func(t *testing.T) {
		b := fixed(6000, 0.5)
		b.MaxWait = maxWait{"m": time.Hour}
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 12_000, Refill: llmrate.Continuous}}},
			JobTypes: jobTypes{"a": fixed(6000, 0.5), "b": b},
		})
		r := acquire(t, l, "a")
		acquire(t, l, "b")
		j := runJobs(t, l, "b", 60, job(0, tokens(100)), llmrate.WithEstimate(tokens(100)))
		j.wait()
		require.Equal(t, minute, elapsed().Round(time.Millisecond)) // the part of a is full again, the bucket is not
		sleepUntil(minute + time.Millisecond)
		acquire(t, l, "a")
		require.NoError(t, r.Settle(usage{}))
		requireFull(t, l, "a", llmrate.WithEstimate(tokens(101)))
	})
	scenario(t, "an early refund and an excess", func(t *testing.T) {
		l := newLimiter(t, config{
			Models:   []modelConfig{{ID: "m", Limits: limits{TokensPerMinute: 12_000, Refill: llmrate.Continuous}}},
			JobTypes: jobTypes{"a": fixed(6000, 0.5), "b": fixed(6000, 0.5)},
		})
		r := acquire(t, l, "a")
		sleepUntil(time.Second)
		require.NoError(t, r.Settle(tokens(1000)))
		r = acquire(t, l, "a", llmrate.WithEstimate(tokens(5100)))
		requireFull(t, l, "a", llmrate.WithEstimate(tokens(1)))
		require.NoError(t, r.Settle(tokens(5300)))
		sleepUntil(3 * time.Second)
		requireFull(t, l, "a", llmrate.WithEstimate(tokens(1)))
		sleepUntil(3*time.Second + 10*time.Millisecond)
		acquire(t, l, "a", llmrate.WithEstimate(tokens(1)))
	})
}

// A plain error with a usage is settled with it, one without keeps the estimate.
func TestSettlementOfErrors(t *testing.T) {
	fail := errors.New("failed")
	for name, row := range map[string]struct {
		used usage
		err  error
		want int64
	}{
		"an error without usage":       {usage{}, fail, 10_000},
		"an error with usage":          {tokens(6000), fail, 6000},
		"an error with overage":        {tokens(15_000), fail, 15_000},
		"Reject without usage":         {usage{}, llmrate.Reject(fail, usage{}), 0},
		"Reject with usage":            {usage{}, llmrate.Reject(fail, tokens(6000)), 6000},
		"Reject overrides the usage":   {tokens(1), llmrate.Reject(fail, tokens(6000)), 6000},
		"Delegate with usage":          {usage{}, llmrate.Delegate(fail, tokens(6000)), 6000},
		"a wrapped Reject":             {usage{}, fmt.Errorf("while calling: %w", llmrate.Reject(fail, tokens(6000))), 6000},
		"a usage that is out of range": {tokens(-1), nil, 10_000},
	} {
		scenario(t, name, func(t *testing.T) {
			l, _ := oneType(t, limits{TokensPerMinute: 100_000, TokensPerDay: 100_000}, jobType{EstimatedTokens: 10_000})
			_, err := l.Run(t.Context(), "a", func(context.Context, llmrate.Attempt[string]) (usage, error) { return row.used, row.err })
			if row.err != nil {
				require.ErrorIs(t, err, fail)
			} else {
				require.Error(t, err)
			}
			requireUsed(t, l, 0, row.want)
		})
	}
}
