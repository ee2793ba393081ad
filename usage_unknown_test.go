package llmrate_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/llmrate/llmrate"
)

func TestUsageUnknownKeepsTheEstimate(t *testing.T) {
	returning := func(err error) func(context.Context, llmrate.Attempt[string]) (usage, error) {
		return func(context.Context, llmrate.Attempt[string]) (usage, error) { return usage{}, err }
	}
	scenario(t, "alone it is success", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 1000, MaxConcurrent: 1}, jobType{EstimatedTokens: 100})
		res, err := l.Run(t.Context(), "a", returning(llmrate.ErrUsageUnknown))
		require.NoError(t, err)
		require.False(t, res.Attempts[0].UsageKnown)
		require.EqualValues(t, 100, model(l).TokensPerMinute.Used)
		require.Zero(t, model(l).Concurrency.Active)
	})
	scenario(t, "what is joined to it is not lost", func(t *testing.T) {
		l, _ := oneType(t, limits{TokensPerMinute: 1000}, jobType{EstimatedTokens: 100})
		broken := errors.New("close failed")
		_, err := l.Run(t.Context(), "a", returning(errors.Join(llmrate.ErrUsageUnknown, broken)))
		require.ErrorIs(t, err, broken)
		require.EqualValues(t, 100, model(l).TokensPerMinute.Used)
	})
}

// The error of a job inside a job must not settle the job around it, however the verdict is wrapped.
func TestVerdictStaysWithItsJob(t *testing.T) {
	cause := errors.New("refused")
	for name, verdict := range map[string]error{
		"plain":            llmrate.Reject(cause, tokens(1)),
		"wrapped":          fmt.Errorf("inner: %w", llmrate.Reject(cause, tokens(1))),
		"delegate wrapped": fmt.Errorf("inner: %w", llmrate.Delegate(cause, tokens(1))),
		"around another":   llmrate.Reject(llmrate.Delegate(cause, tokens(1)), tokens(2)),
	} {
		scenario(t, name, func(t *testing.T) {
			l, _ := oneType(t, limits{TokensPerMinute: 1000}, jobType{EstimatedTokens: 100})
			_, err := l.Run(t.Context(), "a", func(ctx context.Context, _ llmrate.Attempt[string]) (usage, error) {
				_, err := l.Run(ctx, "a", func(context.Context, llmrate.Attempt[string]) (usage, error) { return usage{}, verdict })
				return usage{}, err
			})
			require.ErrorIs(t, err, cause)
			require.GreaterOrEqual(t, model(l).TokensPerMinute.Used, int64(100), "the outer job's usage is unknown")
			require.LessOrEqual(t, model(l).TokensPerMinute.Used, int64(102))
		})
	}
}
