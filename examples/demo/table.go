package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/llmrate/llmrate/examples/internal/provider"
)

// reports is what the provider saw, per model.
func (p *pass) reports() []provider.Report {
	return []provider.Report{p.server.Report(preferred), p.server.Report(fallback)}
}

// refused is how many 429s the provider gave.
func (p *pass) refused() (n int64) {
	for _, r := range p.reports() {
		n += r.RateLimited
	}
	return n
}

// quota is the part of the token quota that was used, of what the provider allowed while requests came.
func (p *pass) quota() float64 {
	var used, allowed float64
	for _, r := range p.reports() {
		used += float64(r.Tokens)
		allowed += r.TokensAllowed
	}
	return used / allowed
}

func (p *pass) escalations() (n int) {
	for _, o := range p.outcomes {
		if o.escalated {
			n++
		}
	}
	return n
}

func (p *pass) cost() (usd float64) {
	for _, o := range p.outcomes {
		usd += o.cost
	}
	return usd
}

// wait is the q-quantile of the waits of one kind of job, among those that were answered.
func (p *pass) wait(kind string, q float64) time.Duration {
	var waits []time.Duration
	for _, o := range p.outcomes {
		if o.kind == kind && o.err == nil {
			waits = append(waits, o.waited)
		}
	}
	if len(waits) == 0 {
		return 0
	}
	slices.Sort(waits)
	return waits[int(q*float64(len(waits)-1)+0.5)]
}

func printTable(out io.Writer, passes ...*pass) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	row := func(name string, cell func(*pass) string) {
		fmt.Fprint(w, name)
		for _, p := range passes {
			fmt.Fprint(w, "\t", cell(p))
		}
		fmt.Fprintln(w)
	}
	waits := func(kind string) func(*pass) string {
		return func(p *pass) string {
			return fmt.Sprintf("%.2f s / %.2f s", p.wait(kind, 0.5).Seconds(), p.wait(kind, 0.95).Seconds())
		}
	}
	row("", func(p *pass) string { return p.name })
	row("calls", func(p *pass) string { return fmt.Sprint(len(p.outcomes)) })
	row("succeeded", func(p *pass) string { return fmt.Sprint(p.answered.Load()) })
	row("failed", func(p *pass) string { return fmt.Sprint(p.failed.Load()) })
	row("HTTP requests sent", func(p *pass) string { return fmt.Sprint(p.sent.Load()) })
	row("429s received", func(p *pass) string { return fmt.Sprint(p.refused()) })
	row("token quota used", func(p *pass) string { return fmt.Sprintf("%.0f %%", 100*p.quota()) })
	row("wait, chat, p50 / p95", waits("chat"))
	row("wait, summary, p50 / p95", waits("summary"))
	row("escalations to "+fallback, func(p *pass) string { return fmt.Sprint(p.escalations()) })
	row("cost", func(p *pass) string {
		return fmt.Sprintf("$%.2f ($%.2f per 1,000 answers)", p.cost(), 1000*p.cost()/float64(max(1, p.answered.Load())))
	})
	row("wall time", func(p *pass) string { return fmt.Sprintf("%.1f s", p.wall.Seconds()) })
	return w.Flush()
}
