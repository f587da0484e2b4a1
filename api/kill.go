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
	Digest      string         `json:"preview_digest"`
}

// A BlockChange is the body of POST and DELETE /v1/blocks.
type BlockChange struct {
	Selector
	Reason string `json:"reason"`
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
