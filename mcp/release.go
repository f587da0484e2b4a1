package mcp

import (
	"context"
	"fmt"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
)

type releaseArguments struct {
	Handle string `json:"handle" jsonschema:"the handle of a request (req_…) or of one credential (lse_…)"`
	Reason string `json:"reason,omitempty" jsonschema:"why it is released, kept in the audit log"`
}

// A Release is the result of release_access.
type Release struct {
	Handle    string  `json:"handle"`
	Summary   string  `json:"summary" jsonschema:"what happened"`
	Next      string  `json:"next" jsonschema:"what to do next"`
	Status    string  `json:"status" jsonschema:"of the request, after this call"`
	Withdrawn bool    `json:"withdrawn,omitempty"`
	Returned  []Lease `json:"returned,omitempty" jsonschema:"the credentials that this call returned"`
}

func addReleaseAccess(s *Server) {
	destructive := true
	add(s, tool("release_access", "Release access", `Give up access that you no longer need, by its handle: withdraw a pending request, or return the credentials of a granted one. Call it as soon as the work is done. A released credential stops working for everyone who has it; access that is needed again needs a new request or collection.`,
		sdk.ToolAnnotations{DestructiveHint: &destructive, IdempotentHint: true}), releaseAccess)
}

func releaseAccess(ctx context.Context, c *call, in releaseArguments) (*Release, error) {
	r, err := c.request(ctx, in.Handle)
	if err != nil {
		return nil, err
	}
	out := &Release{Handle: in.Handle, Status: r.Status}
	if r.Status == api.StatusPending {
		if r, err = c.Withdraw(ctx, r.ID); err != nil {
			return nil, unknown(err)
		}
		out.Status, out.Withdrawn = r.Status, true
		out.Summary, out.Next = "The request was withdrawn. No access came of it.", "Nothing more to do."
		return out, nil
	}
	if err := c.returnLeases(ctx, out, in, r); err != nil {
		return nil, err
	}
	out.summarize(r)
	return out, nil
}

// returnLeases returns the credential that the handle names, or all of the request.
func (c *call) returnLeases(ctx context.Context, out *Release, in releaseArguments, r *api.Request) error {
	ids := []string{in.Handle}
	if _, err := broker.ParseLeaseID(in.Handle); err != nil {
		if ids, err = c.live(ctx, r.ID); err != nil {
			return err
		}
	}
	for _, id := range ids {
		l, err := c.Revoke(ctx, id, in.Reason)
		if err != nil {
			return unknown(err)
		}
		out.Returned = append(out.Returned, leaseOf(l))
	}
	return nil
}

// live returns the caller's leases of a request whose credentials may still work.
func (c *call) live(ctx context.Context, request string) (ids []string, err error) {
	f := api.LeaseFilter{Request: request, Live: true}
	for {
		page, err := c.Leases(ctx, f)
		if err != nil {
			return nil, err
		}
		for _, l := range page.Leases {
			if c.is(l.Holder) {
				ids = append(ids, l.ID)
			}
		}
		if f.Cursor = page.Next; f.Cursor == "" {
			return ids, nil
		}
	}
}

func (o *Release) summarize(r *api.Request) {
	o.Next = "Nothing more to do."
	switch n := len(o.Returned); n {
	case 0:
		o.Summary = fmt.Sprintf("There was nothing to release: the request is %s, and none of its credentials works any more.", r.Status)
	case 1:
		o.Summary = "1 credential was returned."
	default:
		o.Summary = fmt.Sprintf("%d credentials were returned.", n)
	}
	for _, l := range o.Returned {
		if l.WorksUntil != "" {
			o.Next = "Make sure that no program keeps a copy: some of them work until the stated time, although they were returned."
		}
	}
	if r.Status == api.StatusApproved && r.Grant != nil {
		o.Summary += fmt.Sprintf(" Until %s, further credentials can be collected under the same approval.", at(r.Grant.CollectUntil))
	}
}

func (o *Release) words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nHandle: %s\nStatus of the request: %s", o.Summary, o.Handle, o.Status)
	writeLeases(&b, o.Returned)
	fmt.Fprintf(&b, "\nNext: %s", o.Next)
	return b.String()
}
