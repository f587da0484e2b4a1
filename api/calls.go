package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// A CallReport is the body of POST /v1/leases/{id}/calls, which the holder of a lease sends
// about the calls with its credential.
type CallReport struct {
	Call   *Call       `json:"call,omitempty"`   // one that is about to be made
	Counts *CallCounts `json:"counts,omitempty"` // since the last report
}

// A Call is one that an edge is about to make.
type Call struct {
	Method string `json:"method"`
	URL    string `json:"url"` // without query
}

// CallCounts are numbers of calls and of bytes in their bodies.
type CallCounts struct {
	Made     int64     `json:"made,omitempty"`    // the host answered
	Refused  int64     `json:"refused,omitempty"` // not made, or the answer was withheld
	Failed   int64     `json:"failed,omitempty"`  // the host did not answer, or not completely
	Sent     int64     `json:"sent_bytes,omitempty"`
	Received int64     `json:"received_bytes,omitempty"`
	LastAt   time.Time `json:"last_at,omitzero"` // of a lease: the last report
}

// A CallReceipt is the answer to a CallReport. The call may be made.
type CallReceipt struct {
	Recorded bool     `json:"recorded"` // the entitlement demands records of calls
	Receipt  *Receipt `json:"receipt,omitempty"`
}

// Calls reports on calls with the credentials of the caller.
type Calls struct{ Client *Client }

// Announce announces a call. Without an error the call may be made: it is recorded if its
// entitlement demands that.
func (c Calls) Announce(ctx context.Context, lease string, call Call) (*CallReceipt, error) {
	return c.report(ctx, lease, CallReport{Call: &call})
}

// Count reports numbers of calls.
func (c Calls) Count(ctx context.Context, lease string, n CallCounts) error {
	_, err := c.report(ctx, lease, CallReport{Counts: &n})
	return err
}

func (c Calls) report(ctx context.Context, lease string, r CallReport) (*CallReceipt, error) {
	return fetch[CallReceipt](ctx, c.Client, call{
		method: http.MethodPost, path: "/v1/leases/" + url.PathEscape(lease) + "/calls", body: r,
		retry: r.Counts == nil, // counts would be added twice
	})
}
