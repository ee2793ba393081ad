package main

import (
	"context"

	"github.com/openai/openai-go/v3/responses"
)

// bare calls the provider as most programs do today: the SDK as it comes, which retries a 429 twice and waits as long
// as the provider says; and when that fails, the other model.
func bare(sdk responses.ResponseService) caller {
	return func(ctx context.Context, j job, tried func()) outcome {
		used, err := send(ctx, sdk, preferred, j, tried)
		if err == nil {
			return outcome{cost: pricing[preferred].Cost(used)}
		}
		used, err = send(ctx, sdk, fallback, j, tried)
		return outcome{cost: pricing[fallback].Cost(used), err: err, escalated: true}
	}
}
