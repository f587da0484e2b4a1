package signals

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"accessbroker.internal/attest/jwks"
	"accessbroker.internal/broker"
	"accessbroker.internal/internal/strictjson"
)

// Bounds of polls.
const (
	maxSets    = 64  // tokens of one answer
	maxBatches = 100 // answers of one poll, one after the other
)

// setError is an error of a token (RFC 8935, section 2.3, RFC 8936, section 2.4.4).
type setError struct {
	Err         string `json:"err"`
	Description string `json:"description"`
}

// pollRequest is the body of a poll (RFC 8936, section 2.2).
type pollRequest struct {
	MaxEvents         int                 `json:"maxEvents"`
	ReturnImmediately bool                `json:"returnImmediately"`
	Ack               []string            `json:"ack,omitempty"`
	SetErrs           map[string]setError `json:"setErrs,omitempty"`
}

// done acknowledges what the last answer had.
type done struct {
	ack  []string
	errs map[string]setError
}

// RunPoll polls the transmitter until ctx ends.
func (t *Transmitter) RunPoll(ctx context.Context) error {
	every, failures := t.cfg.Poll.Every, 0
	if every == 0 {
		every = DefaultPollEvery
	}
	var d done
	for {
		wait := jitter(every)
		var err error
		if d, err = t.pollAll(ctx, d); err == nil {
			failures = 0
		} else if ctx.Err() == nil {
			failures++
			t.cfg.Log.WarnContext(ctx, "polling the transmitter failed", "transmitter", t.cfg.Name, "attempts", failures, "err", err)
			wait = max(wait, broker.Backoff(failures))
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

// jitter returns a time around d, so that brokers do not poll at the same time.
func jitter(d time.Duration) time.Duration { return d*4/5 + rand.N(d*2/5+1) }

// pollAll polls until the transmitter has no further tokens. It returns the
// acknowledgements that are yet to be sent.
func (t *Transmitter) pollAll(ctx context.Context, d done) (done, error) {
	seen := map[string]bool{}
	for range maxBatches {
		sets, err := t.poll(ctx, d)
		if err != nil {
			return d, err
		}
		if err := t.cfg.Polled(ctx, t.cfg.Name, time.Now()); err != nil {
			return done{}, err
		}
		var retry bool
		if d, retry = t.receiveAll(ctx, sets); retry {
			return d, errors.New("events could not be processed")
		}
		fresh := false
		for key := range sets {
			fresh = fresh || !seen[key]
			seen[key] = true
		}
		if !fresh { // nothing new: stop, even if the transmitter repeats what was acknowledged
			break
		}
	}
	return d, nil
}

// poll sends the acknowledgements and returns the tokens of the answer, by their ids.
func (t *Transmitter) poll(ctx context.Context, d done) (map[string]string, error) {
	body, err := t.post(ctx, t.cfg.Poll.Endpoint, t.cfg.Poll.Token, pollRequest{MaxEvents: maxSets, ReturnImmediately: true, Ack: d.ack, SetErrs: d.errs}, http.StatusOK)
	if err != nil {
		return nil, err
	}
	answer, err := strictjson.Object(body, maxDepth)
	if err != nil {
		return nil, malformed("the answer of the transmitter %v", err)
	}
	sets := map[string]string{}
	if answer["sets"] == nil {
		return sets, nil // nothing to deliver
	}
	members, err := strictjson.Members(answer["sets"], 2)
	if err != nil {
		return nil, malformed("the sets of the transmitter's answer %v", err)
	}
	if len(members) > maxSets {
		members = members[:maxSets] // the transmitter sends the others again
	}
	for _, m := range members {
		if m.Name == "" {
			return nil, malformed("a token of the transmitter's answer has no id")
		}
		text, ok := strictjson.Text(m.Value)
		if !ok {
			text = "" // not a token, and reported as such
		}
		sets[m.Name] = text
	}
	return sets, nil
}

// receiveAll receives the tokens in the order of their issue, because JSON objects have no
// order. retry means that the broker is at fault and a token must be delivered again.
func (t *Transmitter) receiveAll(ctx context.Context, sets map[string]string) (d done, retry bool) {
	d.errs = map[string]setError{}
	for _, key := range inOrder(sets) {
		var rejection *Rejection
		switch err := t.receive(ctx, sets[key], key, time.Now()); {
		case err == nil:
			d.ack = append(d.ack, key)
		case errors.As(err, &rejection):
			d.errs[key] = setError{rejection.Code, rejection.Detail}
		default:
			retry = true
		}
	}
	return d, retry
}

// inOrder returns the keys by the time of issue that the unverified tokens state.
func inOrder(sets map[string]string) []string {
	issued := map[string]time.Time{}
	keys := make([]string, 0, len(sets))
	for key, token := range sets {
		keys = append(keys, key)
		if signed, err := jwks.ParseCompact(token); err == nil && len(token) <= MaxSET {
			if claims, err := strictjson.Object(signed.Payload, maxDepth); err == nil {
				issued[key], _ = numericDate(claims["iat"])
			}
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		if c := issued[a].Compare(issued[b]); c != 0 {
			return c
		}
		return strings.Compare(a, b)
	})
	return keys
}
