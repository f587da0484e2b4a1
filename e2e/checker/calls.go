package checker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"accessbroker.internal/api"
)

// callDeadline bounds a call, so that a client does not wait for a suspended replica for
// long.
const callDeadline = 8 * time.Second

// A request is one HTTP request.
type request struct {
	method, path string
	proof        string // a bearer token; empty: none
	body         any    // JSON
	form         url.Values
	into         func(body []byte, o *Operation) error // reads the answer of a success
}

// An endpoint is one replica as the clients reach it.
type endpoint struct {
	base string // the URL of the replica
	http *http.Client
}

// call sends a request exactly once, and completes the operation with its outcome.
func (e *endpoint) call(ctx context.Context, o *Operation, r request) {
	ctx, cancel := context.WithTimeout(ctx, callDeadline)
	defer cancel()
	o.Start = time.Now().UTC()
	status, body, err := e.send(ctx, o, r)
	o.End = time.Now().UTC()
	o.Status = status
	switch {
	case err != nil:
		o.Outcome, o.Error = Unknown, err.Error()
		if refused := (*net.OpError)(nil); errors.As(err, &refused) && refused.Op == "dial" {
			o.Outcome = Fail // nothing was sent
		}
	case status/100 == 2:
		o.Outcome = OK
		if r.into != nil {
			if err := r.into(body, o); err != nil {
				o.Outcome, o.Error = Unknown, err.Error()
			}
		}
	default:
		var problem api.Problem
		_ = json.Unmarshal(body, &problem) // a page of a proxy has no code
		o.Outcome, o.Code = Unknown, string(problem.Code)
		if status/100 == 4 {
			o.Outcome = Fail
		}
	}
}

func (e *endpoint) send(ctx context.Context, o *Operation, r request) (status int, body []byte, err error) {
	var payload io.Reader = http.NoBody
	kind := ""
	switch {
	case r.form != nil:
		payload, kind = strings.NewReader(r.form.Encode()), "application/x-www-form-urlencoded"
	case r.body != nil:
		text, err := json.Marshal(r.body)
		if err != nil {
			return 0, nil, err
		}
		payload, kind = bytes.NewReader(text), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, r.method, e.base+r.path, payload)
	if err != nil {
		return 0, nil, err
	}
	req.GetBody = nil // with it, net/http may repeat the request
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	if r.proof != "" {
		req.Header.Set("Authorization", "Bearer "+r.proof)
	}
	if o.Args.Key != "" {
		req.Header.Set("Idempotency-Key", o.Args.Key)
	}
	req.Header.Set("Traceparent", "00-"+o.Trace+"-0000000000000001-00")
	resp, err := e.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxLine))
	return resp.StatusCode, body, err
}

// hash returns what the history has of a token.
func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// readCredential reads the answer of a call that issues. If policy requires approvals, the
// answer is a request. secret gets the token.
func readCredential(secret *string) func([]byte, *Operation) error {
	return func(body []byte, o *Operation) error {
		if o.Status == http.StatusAccepted {
			return readRequest(body, o)
		}
		var c api.Credential
		if err := json.Unmarshal(body, &c); err != nil {
			return err
		}
		if c.Lease == "" || c.Secret["token"] == "" {
			return fmt.Errorf("the answer has no lease or no token")
		}
		*secret = c.Secret["token"]
		o.Answer = Answer{
			Request: c.Request, Lease: c.Lease, Type: c.Type, Token: hash(*secret), Index: c.Receipt.Index, LeafHash: c.Receipt.LeafHash,
			Expires: c.ExpiresAt, Revocation: c.Revocation,
		}
		return nil
	}
}

// readRequest reads the answer of a call about a request.
func readRequest(body []byte, o *Operation) error {
	var r api.Request
	if err := json.Unmarshal(body, &r); err != nil {
		return err
	}
	o.Answer = Answer{Request: r.ID, Status: r.Status}
	return nil
}

// readLease reads the answer of a call about a lease.
func readLease(body []byte, o *Operation) error {
	var l api.Lease
	if err := json.Unmarshal(body, &l); err != nil {
		return err
	}
	o.Answer = Answer{Lease: l.ID, Status: l.Status, Revocation: l.Revocation, Expires: l.ExpiresAt}
	return nil
}

// readIntrospection reads the answer of an introspection (RFC 7662).
func readIntrospection(body []byte, o *Operation) error {
	var answer struct {
		Active *bool `json:"active"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	if answer.Active == nil {
		return errors.New("the answer does not say whether the token is active")
	}
	o.Answer = Answer{Active: *answer.Active}
	return nil
}

// readNote reads a signed checkpoint.
func readNote(body []byte, o *Operation) error {
	o.Answer = Answer{Note: string(body)}
	return nil
}
