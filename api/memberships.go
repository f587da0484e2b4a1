package api

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// A Membership is what the broker knows about one member of one group that leases rely
// on, or relied on lately.
type Membership struct {
	ID         string    `json:"id"`
	Issuer     string    `json:"issuer"`
	System     string    `json:"system"`
	Group      string    `json:"group"`
	Member     string    `json:"member"`             // by the name of the system
	Holder     string    `json:"holder"`             // SPIFFE ID, or person as "login/ana", of the latest lease
	Leases     []string  `json:"leases,omitempty"`   // that rely on it
	Existing   bool      `json:"existing,omitempty"` // the broker did not make it, and never removes it
	AddedAt    time.Time `json:"added_at,omitzero"`
	RemovedAt  time.Time `json:"removed_at,omitzero"`
	Difference string    `json:"difference,omitempty"` // removed_early, added_again or left_behind
	Since      time.Time `json:"differs_since,omitzero"`
}

// Differences between a system and the broker's records.
const (
	RemovedEarly = "removed_early" // a lease relies on it, and someone removed it
	AddedAgain   = "added_again"   // the broker removed it, and someone added it again
	LeftBehind   = "left_behind"   // the lease that it was made for was abandoned
)

// A MembershipPage is one page of a list.
type MembershipPage struct {
	Memberships []Membership `json:"memberships"`
	Next        string       `json:"next_cursor,omitempty"` // empty on the last page
}

// A MembershipFilter selects memberships. The zero value selects all that the caller may
// view.
type MembershipFilter struct {
	Holder  string
	Issuer  string
	Differs bool   // only those with a difference
	Cursor  string // Next of the previous page
	Limit   int    // zero: 50; at most 200
}

// Memberships lists memberships.
func (c *Client) Memberships(ctx context.Context, f MembershipFilter) (*MembershipPage, error) {
	differs := ""
	if f.Differs {
		differs = "true"
	}
	query := values("holder", f.Holder, "issuer", f.Issuer, "differs", differs, "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[MembershipPage](ctx, c, call{method: http.MethodGet, path: "/v1/memberships", query: query, retry: true})
}

// AcceptMembership ends a difference: the membership stays as it is, and the broker no
// longer counts it as its own.
func (c *Client) AcceptMembership(ctx context.Context, id, reason string) (*Membership, error) {
	return fetch[Membership](ctx, c, call{
		method: http.MethodPost, path: "/v1/memberships/" + url.PathEscape(id) + "/accept", body: Revocation{Reason: reason},
	})
}
