package api

import (
	"context"
	"net/http"
	"time"
)

// A Selector selects leases for the kill switch. Exactly one field is set.
type Selector struct {
	Holder      string `json:"holder,omitempty"` // a SPIFFE ID, or a person as "login/ana"
	Under       string `json:"under,omitempty"`  // a SPIFFE ID and every path below it
	TrustDomain string `json:"trust_domain,omitempty"`
	Entitlement string `json:"entitlement,omitempty"`
	Issuer      string `json:"issuer,omitempty"`
	Request     string `json:"request,omitempty"` // "req_…"; a request can be revoked but not blocked
}

// A Kill is the body of POST /v1/revocations. Without Preview it needs the
// PreviewDigest of the preview that the caller has read, or Force.
type Kill struct {
	Selector
	Reason        string `json:"reason,omitempty"`
	Preview       bool   `json:"preview,omitempty"`
	PreviewDigest string `json:"preview_digest,omitempty"`
	Force         bool   `json:"force,omitempty"`
	Unmatched     bool   `json:"unmatched,omitempty"` // confirms a selector that matches nothing; without it, the error is NothingMatches
}

// A KillPreview counts the leases that the kill switch would end, or has ended.
type KillPreview struct {
	Leases      int            `json:"leases"`
	Ended       int            `json:"ended,omitempty"` // of Leases: have ended but their credentials still work
	ByIssuer    map[string]int `json:"by_issuer,omitempty"`
	Irrevocable int            `json:"irrevocable"`         // of Leases: cannot be revoked
	Beyond      int            `json:"beyond,omitempty"`    // leases that are not selected but end too, because the issuer ends them together
	Lasting     int            `json:"lasting,omitempty"`   // of Irrevocable: work after the lease has expired
	WorkUntil   time.Time      `json:"work_until,omitzero"` // the latest expiry of the other irrevocable ones
	More        bool           `json:"more,omitempty"`      // one call did not cover all leases: repeat it
	Hits        []KillHit      `json:"hits,omitempty"`      // the newest leases, at most 50
	Accounts    []string       `json:"accounts,omitempty"`  // all accounts of the selected person, who has several
	Unmatched   bool           `json:"unmatched,omitempty"` // the selector matches no live lease, no request and no name in the rules
	Near        string         `json:"near,omitempty"`      // of Unmatched: a similar name
	Below       bool           `json:"below,omitempty"`     // of Unmatched: the holder is a path with identities below it, which Under selects
	Digest      string         `json:"preview_digest"`
}

// A KillHit is one lease that the kill switch would end.
type KillHit struct {
	Lease       string    `json:"lease"`
	Holder      string    `json:"holder"`
	Entitlement string    `json:"entitlement"`
	Issuer      string    `json:"issuer"`
	ExpiresAt   time.Time `json:"expires_at"`
	Revocation  string    `json:"revocation"`           // the effect of the kill switch on the credential
	WorksUntil  time.Time `json:"works_until,omitzero"` // when a credential that is not revocable stops working, if that is known
}

// Revocable returns the number of leases whose credentials can be revoked.
func (p KillPreview) Revocable() int { return p.Leases - p.Irrevocable }

// Expiring returns the number of leases whose credentials cannot be revoked and work until
// they expire.
func (p KillPreview) Expiring() int { return p.Irrevocable - p.Lasting }

// Unlisted returns the number of leases that are not among the hits.
func (p KillPreview) Unlisted() int { return p.Leases - len(p.Hits) }

// A BlockChange is the body of POST and DELETE /v1/blocks.
type BlockChange struct {
	Selector
	Reason    string `json:"reason"`
	Unmatched bool   `json:"unmatched,omitempty"` // of POST: as in Kill
}

// A Block makes the broker refuse everything that it selects, until it is lifted.
type Block struct {
	Kind   string    `json:"kind"` // holder, under, trust_domain, entitlement, issuer
	Name   string    `json:"name"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Since  time.Time `json:"since"`
}

// Blocks is the answer of GET /v1/blocks.
type Blocks struct {
	Blocks []Block `json:"blocks"`
}

// Kill previews or uses the kill switch, which blocks first and then revokes.
// Repeating it is not an error.
func (c *Client) Kill(ctx context.Context, k Kill) (*KillPreview, error) {
	return fetch[KillPreview](ctx, c, call{method: http.MethodPost, path: "/v1/revocations", body: k, retry: true})
}

// Block places a block. Repeating it is not an error.
func (c *Client) Block(ctx context.Context, b BlockChange) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/blocks", body: b, retry: true}, nil)
}

// Lift lifts a block. If there is no such block, the error is NotFound.
func (c *Client) Lift(ctx context.Context, b BlockChange) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/blocks", body: b}, nil)
}

// Blocks returns the blocks in force.
func (c *Client) Blocks(ctx context.Context) ([]Block, error) {
	var out Blocks
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/blocks", retry: true}, &out)
	return out.Blocks, err
}
