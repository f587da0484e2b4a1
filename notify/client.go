package notify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"accessbroker.internal/internal/outbound"
	"accessbroker.internal/internal/retryafter"
)

// maxAnswer bounds the bytes of an answer that are read.
const maxAnswer = 64 << 10

// send sends a request and returns the start of the body of the answer. A status
// other than 2xx is an error: ErrChannelGone for 410, and a *RetryAfter if the
// answer has a Retry-After header.
func send(ctx context.Context, client *http.Client, req *http.Request) ([]byte, error) {
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		return nil, errors.Join(errors.New("the call failed"), outbound.Cause(err))
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case resp.StatusCode == http.StatusGone:
		return nil, ErrChannelGone
	case resp.StatusCode/100 == 3:
		return nil, fmt.Errorf("the receiver answered with a redirect (%d), which is not followed", resp.StatusCode)
	case resp.StatusCode/100 != 2:
		failed := fmt.Errorf("the receiver answered %d", resp.StatusCode)
		if after := retryafter.Parse(resp.Header); after > 0 {
			return nil, &RetryAfter{Err: failed, After: after}
		}
		return nil, failed
	}
	return body, err
}
