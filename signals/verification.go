package signals

import (
	"context"
	"crypto/rand"
	"errors"
	"net/http"
	"time"

	"accessbroker.internal/broker"
)

// verificationRequest is the body of a request for a verification event (SSF, section
// 8.1.4.2).
type verificationRequest struct {
	StreamID string `json:"stream_id"`
	State    string `json:"state"`
}

// RunVerification requests verification events until ctx ends. A stream that delivers
// them is alive, even if there is no other event.
func (t *Transmitter) RunVerification(ctx context.Context) error {
	for failures := 0; ; {
		wait := jitter(t.cfg.Verification.Every)
		if err := t.requestVerification(ctx); err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			failures++
			t.cfg.Log.WarnContext(ctx, "requesting a verification event failed", "transmitter", t.cfg.Name, "attempts", failures, "err", err)
			wait = min(wait, broker.Backoff(failures))
			if failed := (*statusError)(nil); errors.As(err, &failed) {
				wait = max(wait, failed.after)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// requestVerification stores the state before the request, because the event may arrive
// before the answer.
func (t *Transmitter) requestVerification(ctx context.Context) error {
	v, state := t.cfg.Verification, rand.Text()
	if err := t.cfg.Expect(ctx, t.cfg.Name, state, time.Now()); err != nil {
		return err
	}
	_, err := t.post(ctx, v.Endpoint, v.Token, verificationRequest{v.StreamID, state}, http.StatusNoContent, http.StatusOK, http.StatusAccepted)
	return err
}
