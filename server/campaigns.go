package server

import (
	"context"
	"slices"
	"strconv"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
)

// Access reviews over /v1.

// reviewStatuses are the names of the states of an item.
var reviewStatuses = []broker.ReviewStatus{
	broker.ReviewOpen, broker.ReviewSecond, broker.ReviewKept, broker.ReviewNarrowed, broker.ReviewEnded, broker.ReviewDisabled, broker.ReviewGone,
}

func reviewStatus(name string) (broker.ReviewStatus, error) {
	for _, s := range reviewStatuses {
		if s.String() == name {
			return s, nil
		}
	}
	return 0, refuse(broker.ErrInvalidRequest, "status is open, second_look, kept, narrowed, ended, disabled or gone")
}

func toCampaign(c *broker.Campaign) api.Campaign {
	n := &c.Counts
	out := api.Campaign{
		ID: c.ID.String(), Name: c.Name, Status: "open", StartedBy: c.By, StartedAt: c.Started.UTC(), DeadlineAt: c.Deadline.UTC(), ClosedAt: utc(c.Closed),
		Signed: c.Plan.Signed, Digest: c.Digest.String(), Items: n.Items,
		Counts: map[string]int{"open": n.Open, "second_look": n.Second, "kept": n.Kept, "narrowed": n.Narrowed, "ended": n.Ended, "disabled": n.Disabled, "gone": n.Gone},
	}
	if c.Status == broker.CampaignClosed {
		out.Status = "closed"
	}
	return out
}

func toReviewDecision(d *broker.ReviewDecision) *api.ReviewDecision {
	if d.Person == "" {
		return nil
	}
	return &api.ReviewDecision{Decision: string(d.Verdict), By: d.Person, At: d.At.UTC(), Reason: d.Reason, Left: d.Left, Bulk: d.Bulk, Signed: d.Signed}
}

func toReviewItem(i *campaign.Item) api.ReviewItem {
	out := api.ReviewItem{
		Item: i.Number, Campaign: i.Campaign.String(), Kind: string(i.ReviewItem.Permission.Kind), Name: i.ReviewItem.Permission.Name, Status: i.Status.String(),
		Reviewer: i.Reviewer.String(), Fallback: i.Fallback, Signed: i.Signed, MayDecide: i.MayDecide, Why: i.Why, Decision: toReviewDecision(&i.Decision),
	}
	if i.Exists {
		p := &i.Permission
		out.Digest, out.Content, out.Parts, out.Covers, out.Peers, out.PeersAll = i.Digest.String(), p.Content, p.Parts, p.Covers, p.Peers, p.PeersAll
	}
	if s := i.Suspension; s != nil {
		out.Suspension = &api.ReviewSuspend{Cause: s.Cause, Since: s.Since.UTC(), Left: s.Left, RestoreBy: s.Restore, RestoreWhy: s.RestoreReason}
	}
	return out
}

func toReviewDetails(d *campaign.Details) api.ReviewItem {
	out := toReviewItem(&d.Item)
	if d.Use.Known {
		out.Use = &api.ReviewUse{LastAt: utc(d.Use.Last), Credentials: d.Use.Count, Votes: d.Use.Votes, UnusedParts: d.Use.UnusedParts}
	}
	for _, e := range d.Earlier {
		out.Earlier = append(out.Earlier, api.ReviewEarlier{Campaign: e.Campaign.String(), Status: e.Status.String(), Decision: toReviewDecision(&e.Decision)})
	}
	out.Supplier = d.Supplier
	return out
}

// errNoCampaigns is the answer if the server has no access reviews.
var errNoCampaigns = refuse(broker.ErrNotFound, "there is no such access review, or you may not see it")

// reviewing runs a route only if the server has access reviews.
func reviewing(run func(*Server, *call) (reply, error)) func(*Server, *call) (reply, error) {
	return func(s *Server, c *call) (reply, error) {
		if s.cfg.Campaigns == nil {
			return reply{}, errNoCampaigns
		}
		return run(s, c)
	}
}

func (c *call) campaignID() (broker.CampaignID, error) {
	id, err := broker.ParseCampaignID(c.r.PathValue("id"))
	if err != nil {
		return id, errNoCampaigns
	}
	return id, nil
}

func (c *call) itemKey() (broker.ReviewItemKey, error) {
	id, err := c.campaignID()
	if err != nil {
		return broker.ReviewItemKey{}, err
	}
	n, err := strconv.Atoi(c.r.PathValue("item"))
	if err != nil || n < 1 || n > campaign.MaxItems || strconv.Itoa(n) != c.r.PathValue("item") {
		return broker.ReviewItemKey{}, refuse(broker.ErrNotFound, "there is no such item in the access review, or you may not see it")
	}
	return broker.ReviewItemKey{Campaign: id, Number: n}, nil
}

func (s *Server) listCampaigns(c *call) (reply, error) {
	var q broker.CampaignQuery
	var err error
	if q.Before, err = cursor(c, broker.ParseCampaignID); err != nil {
		return reply{}, err
	}
	if q.Limit, err = c.limit(); err != nil {
		return reply{}, err
	}
	list, next, err := s.cfg.Campaigns.Campaigns(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	out := api.CampaignPage{Campaigns: make([]api.Campaign, len(list)), Next: next.String()}
	for i, one := range list {
		out.Campaigns[i] = toCampaign(one)
	}
	return ok(out)
}

func (s *Server) startCampaign(c *call, body api.CampaignStart) (reply, error) {
	started, err := s.cfg.Campaigns.Start(c.r.Context(), c.caller(), body.Name)
	if err != nil {
		return reply{}, err
	}
	return c.created("/v1/campaigns/"+started.ID.String(), toCampaign(started))
}

func (s *Server) getCampaign(c *call) (reply, error) {
	id, err := c.campaignID()
	if err != nil {
		return reply{}, err
	}
	found, _, err := s.cfg.Campaigns.Campaign(c.r.Context(), c.caller(), id)
	if err != nil {
		return reply{}, err
	}
	out := toCampaign(found)
	out.Waiting, err = s.cfg.Campaigns.Waiting(c.r.Context(), c.caller(), id)
	if err != nil {
		return reply{}, err
	}
	return ok(out)
}

func (s *Server) listReviewItems(c *call) (reply, error) {
	id, err := c.campaignID()
	if err != nil {
		return reply{}, err
	}
	var q campaign.ItemQuery
	if q.After, err = itemCursor(c.query.get("cursor")); err != nil {
		return reply{}, err
	}
	if q.Limit, err = c.limit(); err != nil {
		return reply{}, err
	}
	switch c.query.get("mine") {
	case "", "false":
	case "true":
		q.Mine = true
	default:
		return reply{}, refuse(broker.ErrInvalidRequest, "mine must be true or false")
	}
	if name := c.query.get("status"); name != "" {
		if q.Status, err = reviewStatus(name); err != nil {
			return reply{}, err
		}
	}
	list, next, err := s.cfg.Campaigns.Items(c.r.Context(), c.caller(), id, q)
	if err != nil {
		return reply{}, err
	}
	out := api.ReviewItemPage{Items: make([]api.ReviewItem, len(list))}
	for i := range list {
		out.Items[i] = toReviewItem(&list[i])
	}
	if next > 0 {
		out.Next = strconv.Itoa(next)
	}
	return ok(out)
}

// itemCursor reads the number of the last item of a page.
func itemCursor(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > campaign.MaxItems {
		return 0, refuse(broker.ErrInvalidRequest, "cursor is the next_cursor of the previous page")
	}
	return n, nil
}

func (s *Server) getReviewItem(c *call) (reply, error) {
	key, err := c.itemKey()
	if err != nil {
		return reply{}, err
	}
	d, err := s.cfg.Campaigns.Item(c.r.Context(), c.caller(), key)
	if err != nil {
		return reply{}, err
	}
	return ok(toReviewDetails(d))
}

func (s *Server) decideReviewItem(c *call, body api.ReviewVote) (reply, error) {
	key, err := c.itemKey()
	if err != nil {
		return reply{}, err
	}
	digest, err := itemDigest(body.Digest)
	if err != nil {
		return reply{}, err
	}
	d := campaign.Decision{Verdict: broker.ReviewVerdict(body.Decision), Digest: digest, Left: body.Left, Reason: body.Reason}
	if _, err := s.cfg.Campaigns.Decide(c.r.Context(), c.caller(), key, d); err != nil {
		return reply{}, err
	}
	after, err := s.cfg.Campaigns.Item(context.WithoutCancel(c.r.Context()), c.caller(), key)
	if err != nil {
		return reply{}, err
	}
	return ok(toReviewDetails(after))
}

func itemDigest(text string) (d audit.Digest, err error) {
	if err := d.UnmarshalText([]byte(text)); err != nil {
		return d, refuse(broker.ErrInvalidRequest, "digest is the digest of the item as you saw it, 64 hexadecimal digits")
	}
	return d, nil
}

func (s *Server) keepReviewItems(c *call, body api.ReviewBulk) (reply, error) {
	id, err := c.campaignID()
	if err != nil {
		return reply{}, err
	}
	var list []campaign.Seen
	for _, seen := range body.Items {
		digest, err := itemDigest(seen.Digest)
		if err != nil {
			return reply{}, err
		}
		list = append(list, campaign.Seen{Number: seen.Item, Digest: digest})
	}
	second, err := s.cfg.Campaigns.KeepAll(c.r.Context(), c.caller(), id, list, body.Reason)
	if err != nil {
		return reply{}, err
	}
	return ok(api.ReviewBulkResult{Kept: len(list) - len(second), Second: second})
}

func (s *Server) restoreReviewItem(c *call, body api.Restoration) (reply, error) {
	key, err := c.itemKey()
	if err != nil {
		return reply{}, err
	}
	digest, err := itemDigest(body.Digest)
	if err != nil {
		return reply{}, err
	}
	d, err := s.cfg.Campaigns.Item(c.r.Context(), c.caller(), key)
	if err != nil {
		return reply{}, err
	}
	restored, err := s.cfg.Campaigns.Restore(c.r.Context(), c.caller(), d.ReviewItem.Permission, digest, body.Reason)
	if err != nil {
		return reply{}, err
	}
	return ok(api.RestorationResult{Restored: restored})
}

func (s *Server) reviewPatch(c *call) (reply, error) {
	id, err := c.campaignID()
	if err != nil {
		return reply{}, err
	}
	patch, err := s.patchOf(c, id)
	if err != nil {
		return reply{}, err
	}
	return ok(patch)
}

// patchOf returns the proposed change for git to those who run the campaign.
func (s *Server) patchOf(c *call, id broker.CampaignID) (api.ReviewPatch, error) {
	if _, runs, err := s.cfg.Campaigns.Campaign(c.r.Context(), c.caller(), id); err != nil || !runs {
		if err == nil {
			err = refuse(broker.ErrDenied, "only those who run the access review and auditors see its patch")
		}
		return api.ReviewPatch{}, err
	}
	all, err := s.cfg.Campaigns.Suspensions(c.r.Context())
	if err != nil {
		return api.ReviewPatch{}, err
	}
	of := slices.DeleteFunc(all, func(row *broker.SuspensionRow) bool { return row.Item.Campaign != id })
	if s.cfg.ReviewPatch == nil {
		return api.ReviewPatch{}, errNoCampaigns
	}
	patch, notes, err := s.cfg.ReviewPatch(c.r.Context(), of)
	return api.ReviewPatch{Patch: patch, Notes: notes}, err
}
