package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// A Campaign is one run of an access review.
type Campaign struct {
	ID         string         `json:"id"`
	Name       string         `json:"name"`
	Status     string         `json:"status"`               // open, closed
	StartedBy  string         `json:"started_by,omitempty"` // empty: the schedule
	StartedAt  time.Time      `json:"started_at"`
	DeadlineAt time.Time      `json:"deadline_at"`
	ClosedAt   time.Time      `json:"closed_at,omitzero"`
	Signed     bool           `json:"signed,omitempty"` // decisions need a passkey signature
	Digest     string         `json:"digest"`           // of the items
	Items      int            `json:"items"`
	Counts     map[string]int `json:"counts"`            // items by status
	Waiting    map[string]int `json:"waiting,omitempty"` // for those who run it: items that wait, by reviewer
}

// A CampaignPage is one page of a list.
type CampaignPage struct {
	Campaigns []Campaign `json:"campaigns"`
	Next      string     `json:"next_cursor,omitempty"`
}

// A CampaignStart starts an access review of reviews.yaml.
type CampaignStart struct {
	Name string `json:"name"`
}

// A ReviewItem is one permission in an access review.
type ReviewItem struct {
	Item       int             `json:"item"` // the number, from 1
	Campaign   string          `json:"campaign"`
	Kind       string          `json:"kind"` // permit, mark, member, supplier, grant
	Name       string          `json:"name"`
	Status     string          `json:"status"` // open, second_look, kept, narrowed, ended, disabled, gone
	Reviewer   string          `json:"reviewer"`
	Fallback   bool            `json:"fallback,omitempty"` // no other reviewer is eligible
	Signed     bool            `json:"signed,omitempty"`
	Digest     string          `json:"digest,omitempty"` // of the permission as it is now: decisions are bound to it; empty: the rules no longer have it
	Content    string          `json:"content,omitempty"`
	Parts      []string        `json:"parts,omitempty"` // to which it may be narrowed
	Covers     []string        `json:"covers,omitempty"`
	MayDecide  bool            `json:"may_decide"`
	Why        string          `json:"why,omitempty"` // the caller may not decide
	Decision   *ReviewDecision `json:"decision,omitempty"`
	Use        *ReviewUse      `json:"use,omitempty"`     // of one item only
	Earlier    []ReviewEarlier `json:"earlier,omitempty"` // decisions in other campaigns
	Peers      []string        `json:"peers,omitempty"`
	PeersAll   int             `json:"peers_total,omitempty"`
	Supplier   string          `json:"supplier,omitempty"` // what is known about it
	Suspension *ReviewSuspend  `json:"suspension,omitempty"`
}

// A ReviewDecision is one person's decision on an item.
type ReviewDecision struct {
	Decision string    `json:"decision"` // keep, narrow, end
	By       string    `json:"by"`
	At       time.Time `json:"at"`
	Reason   string    `json:"reason"`
	Left     []string  `json:"left,omitempty"` // of narrow
	Bulk     bool      `json:"bulk,omitempty"` // one of many in one decision
	Signed   bool      `json:"signed,omitempty"`
}

// A ReviewEarlier is a decision on the same permission in another campaign.
type ReviewEarlier struct {
	Campaign string          `json:"campaign"`
	Status   string          `json:"status"`
	Decision *ReviewDecision `json:"decision,omitempty"`
}

// A ReviewUse is how a permission was used.
type ReviewUse struct {
	LastAt      time.Time `json:"last_at,omitzero"` // zero: never
	Credentials int       `json:"credentials"`
	Votes       int       `json:"votes,omitempty"`
	UnusedParts []string  `json:"unused_parts,omitempty"`
}

// A ReviewSuspend is the suspension of a permission.
type ReviewSuspend struct {
	Cause      string    `json:"cause"` // unreviewed, ended, narrowed
	Since      time.Time `json:"since"`
	Left       []string  `json:"left,omitempty"`
	RestoreBy  string    `json:"restore_by,omitempty"` // who asked to lift it; another person must agree
	RestoreWhy string    `json:"restore_reason,omitempty"`
}

// A ReviewItemPage is one page of a list.
type ReviewItemPage struct {
	Items []ReviewItem `json:"items"`
	Next  string       `json:"next_cursor,omitempty"`
}

// A ReviewVote is a decision on an item.
type ReviewVote struct {
	Decision string   `json:"decision"` // keep, narrow, end
	Digest   string   `json:"digest"`   // of the item as the person saw it
	Left     []string `json:"left,omitempty"`
	Reason   string   `json:"reason"`
}

// A ReviewBulk keeps many items in one decision.
type ReviewBulk struct {
	Items  []SeenItem `json:"items"`
	Reason string     `json:"reason"`
}

// A SeenItem is an item with the digest that the person saw.
type SeenItem struct {
	Item   int    `json:"item"`
	Digest string `json:"digest"`
}

// A ReviewBulkResult lists the items that wait for a second look.
type ReviewBulkResult struct {
	Kept   int   `json:"kept"`
	Second []int `json:"second_look"`
}

// A Restoration asks to lift a suspension, or agrees to lift it.
type Restoration struct {
	Digest string `json:"digest"`
	Reason string `json:"reason"`
}

// A RestorationResult is the state of a suspension.
type RestorationResult struct {
	Restored bool `json:"restored"` // false: another person must agree
}

// A ReviewFilter selects items. The zero value selects all that the caller may see.
type ReviewFilter struct {
	Status string
	Mine   bool // that wait for the caller
	Cursor string
	Limit  int
}

// Reviews are the calls about access reviews.
type Reviews struct{ c *Client }

// NewReviews returns the calls about access reviews of a client.
func NewReviews(c *Client) Reviews { return Reviews{c} }

// Campaigns lists access reviews.
func (r Reviews) Campaigns(ctx context.Context, cursor string, limit int) (*CampaignPage, error) {
	return fetch[CampaignPage](ctx, r.c, call{method: http.MethodGet, path: "/v1/campaigns", query: values("cursor", cursor, "limit", number(limit)), retry: true})
}

// StartCampaign starts an access review.
func (r Reviews) StartCampaign(ctx context.Context, name string) (*Campaign, error) {
	return fetch[Campaign](ctx, r.c, call{method: http.MethodPost, path: "/v1/campaigns", body: CampaignStart{name}})
}

func campaignPath(id string) string { return "/v1/campaigns/" + url.PathEscape(id) }

func itemPath(id string, item int) string {
	return campaignPath(id) + "/items/" + strconv.Itoa(item)
}

// Campaign returns an access review.
func (r Reviews) Campaign(ctx context.Context, id string) (*Campaign, error) {
	return fetch[Campaign](ctx, r.c, call{method: http.MethodGet, path: campaignPath(id), retry: true})
}

// ReviewItems lists items of an access review.
func (r Reviews) ReviewItems(ctx context.Context, id string, f ReviewFilter) (*ReviewItemPage, error) {
	mine := ""
	if f.Mine {
		mine = "true"
	}
	query := values("status", f.Status, "mine", mine, "cursor", f.Cursor, "limit", number(f.Limit))
	return fetch[ReviewItemPage](ctx, r.c, call{method: http.MethodGet, path: campaignPath(id) + "/items", query: query, retry: true})
}

// ReviewItem returns one item with what helps to decide on it.
func (r Reviews) ReviewItem(ctx context.Context, id string, item int) (*ReviewItem, error) {
	return fetch[ReviewItem](ctx, r.c, call{method: http.MethodGet, path: itemPath(id, item), retry: true})
}

// DecideItem decides on an item.
func (r Reviews) DecideItem(ctx context.Context, id string, item int, v ReviewVote) (*ReviewItem, error) {
	return fetch[ReviewItem](ctx, r.c, call{method: http.MethodPost, path: itemPath(id, item) + "/decision", body: v})
}

// KeepItems keeps many items in one decision.
func (r Reviews) KeepItems(ctx context.Context, id string, b ReviewBulk) (*ReviewBulkResult, error) {
	return fetch[ReviewBulkResult](ctx, r.c, call{method: http.MethodPost, path: campaignPath(id) + "/keep", body: b})
}

// RestoreItem asks to lift the suspension of an item's permission, or agrees to it.
func (r Reviews) RestoreItem(ctx context.Context, id string, item int, body Restoration) (*RestorationResult, error) {
	return fetch[RestorationResult](ctx, r.c, call{method: http.MethodPost, path: itemPath(id, item) + "/restore", body: body})
}

// A ReviewPatch proposes the change that an access review asks for.
type ReviewPatch struct {
	Patch string   `json:"patch"`           // a unified diff of the policy folder; empty: nothing to change
	Notes []string `json:"notes,omitempty"` // changes outside of the policy folder, and those that the patch leaves out
}

// ReviewPatch returns the proposed change for git.
func (r Reviews) ReviewPatch(ctx context.Context, id string) (*ReviewPatch, error) {
	return fetch[ReviewPatch](ctx, r.c, call{method: http.MethodGet, path: campaignPath(id) + "/patch", retry: true})
}
