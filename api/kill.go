package api

import (
	"context"
	"net/http"
	"time"
)

// A Selector says what the kill switch hits. Exactly one field is set.
type Selector struct {
	Holder      string `json:"holder,omitempty"` // a SPIFFE ID, or a person as "login/ana"
	Under       string `json:"under,omitempty"`  // a SPIFFE ID: itself and every path below it
	TrustDomain string `json:"trust_domain,omitempty"`
	Entitlement string `json:"entitlement,omitempty"`
	Issuer      string `json:"issuer,omitempty"`
	Request     string `json:"request,omitempty"` // "req_…"; it can be revoked, and not blocked
}

// A Kill is the body of POST /v1/revocations: a preview, or the act. The act
// needs the digest of the preview that was looked at, or Force.
type Kill struct {
	Selector
	Reason        string `json:"reason,omitempty"`
	Preview       bool   `json:"preview,omitempty"`
	PreviewDigest string `json:"preview_digest,omitempty"`
	Force         bool   `json:"force,omitempty"`
}

// A KillPreview says what the kill switch would hit, or has hit.
type KillPreview struct {
	Leases      int            `json:"leases"`
	Ended       int            `json:"ended,omitempty"` // of them, those that have ended before and work all the same
	ByIssuer    map[string]int `json:"by_issuer,omitempty"`
	Irrevocable int            `json:"irrevocable"`         // of them, those that only time ends
	Beyond      int            `json:"beyond,omitempty"`    // others that are not selected, and end with them at their issuer
	Lasting     int            `json:"lasting,omitempty"`   // of these, those that don't end with their lease
	WorkUntil   time.Time      `json:"work_until,omitzero"` // the latest end of the other irrevocable ones
	More        bool           `json:"more,omitempty"`      // there are more than one call looks at: call again
	Digest      string         `json:"preview_digest"`
}

// A BlockChange is the body of POST and DELETE /v1/blocks.
type BlockChange struct {
	Selector
	Reason string `json:"reason"`
}

// A Block refuses whatever it selects until it is lifted.
type Block struct {
	Kind   string    `json:"kind"` // holder, under, trust_domain, entitlement, issuer
	Name   string    `json:"name"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
	Since  time.Time `json:"since"`
}

// Blocks are the blocks in force.
type Blocks struct {
	Blocks []Block `json:"blocks"`
}

// Kill previews or pulls the kill switch: the block first, then the
// revocations. What was pulled twice is no error.
func (c *Client) Kill(ctx context.Context, k Kill) (*KillPreview, error) {
	return fetch[KillPreview](ctx, c, call{method: http.MethodPost, path: "/v1/revocations", body: k, retry: true})
}

// Block places a block. Placing it twice is no error.
func (c *Client) Block(ctx context.Context, b BlockChange) error {
	return c.do(ctx, call{method: http.MethodPost, path: "/v1/blocks", body: b, retry: true}, nil)
}

// Lift lifts a block; lifting what is not blocked is NotFound.
func (c *Client) Lift(ctx context.Context, b BlockChange) error {
	return c.do(ctx, call{method: http.MethodDelete, path: "/v1/blocks", body: b}, nil)
}

// Blocks lists the blocks in force.
func (c *Client) Blocks(ctx context.Context) ([]Block, error) {
	var out Blocks
	err := c.do(ctx, call{method: http.MethodGet, path: "/v1/blocks", retry: true}, &out)
	return out.Blocks, err
}
