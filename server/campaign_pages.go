package server

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/campaign"
	"accessbroker.internal/server/plot"
	"accessbroker.internal/server/ui"
)

// The pages of access reviews.

// campaignRows is the number of items of a page.
const campaignRows = 50

type campaignsPage struct {
	Campaigns []campaignRow
	Startable []string
	Later     bool
	Next      string
	Failed    string
}

type campaignRow struct {
	api.Campaign
	Done int // percent
}

func toCampaignRow(c *broker.Campaign) campaignRow {
	return campaignRow{toCampaign(c), (c.Counts.Items - c.Counts.Waiting()) * 100 / max(c.Counts.Items, 1)}
}

// campaignsPage lists the access reviews that the viewer may see.
func (s *Server) campaignsPage(c *call) (reply, error) { return s.showCampaigns(c, http.StatusOK, "") }

func (s *Server) showCampaigns(c *call, status int, failed string) (reply, error) {
	p := campaignsPage{Failed: failed, Startable: s.cfg.Campaigns.Startable(c.r.Context(), c.caller())}
	q := broker.CampaignQuery{Limit: listRows}
	if text := c.r.URL.Query().Get("after"); text != "" {
		var err error
		if q.Before, err = broker.ParseCampaignID(text); err != nil {
			return reply{}, refuse(broker.ErrInvalidRequest, "the link to this page is damaged")
		}
		p.Later = true
	}
	list, next, err := s.cfg.Campaigns.Campaigns(c.r.Context(), c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	for _, one := range list {
		p.Campaigns = append(p.Campaigns, toCampaignRow(one))
	}
	p.Next = next.String()
	return c.pageOf(status, ui.Page{Name: "campaigns", Title: "Access reviews", Tab: "campaigns", Data: p})
}

// startOnPage starts an access review.
func (s *Server) startOnPage(c *call) (reply, error) {
	started, err := s.cfg.Campaigns.Start(c.r.Context(), c.caller(), c.form.get("name"))
	if err == nil {
		return c.redirect(s.to("/ui/campaigns/" + started.ID.String()))
	}
	if m := errorRowOf(err); m.fault == clientFault && m.status != http.StatusUnauthorized {
		return s.showCampaigns(c, m.status, c.problemOf(err).Detail)
	}
	return reply{}, err
}

type campaignPage struct {
	campaignRow
	Plan     broker.CampaignPlan
	Runs     bool
	Progress plot.Chart
	Items    []api.ReviewItem
	Mine     bool
	Filter   string // a status
	Statuses []string
	After    int
	Next     int
	CanKeep  bool // some item may be kept in bulk
	Done     string
	Failed   string
	Reason   string
}

// campaignPage shows a campaign with its items.
func (s *Server) campaignPage(c *call) (reply, error) {
	p := campaignPage{}
	if done := c.r.URL.Query().Get("done"); done != "" {
		p.Done = reviewDone(done)
	}
	return s.showCampaign(c, http.StatusOK, p)
}

// reviewDone returns what a form did, in words.
func reviewDone(text string) string {
	verb, n, _ := strings.Cut(text, ".")
	kept, second, _ := strings.Cut(n, ".")
	a, err1 := strconv.Atoi(kept)
	b, err2 := strconv.Atoi(second)
	switch {
	case verb == "kept" && err1 == nil && err2 == nil:
		return fmt.Sprintf("You decided on %d items at once. %d of them, chosen at random, need a second look: decide on each alone.", a+b, b)
	case verb == "keep", verb == "narrow", verb == "end":
		return "Your decision is recorded."
	case verb == "restoring":
		return "Another person must agree before the access is restored."
	case verb == "restored":
		return "The access is restored."
	}
	return ""
}

func (s *Server) showCampaign(c *call, status int, p campaignPage) (reply, error) {
	id, err := c.campaignID()
	if err != nil {
		return reply{}, err
	}
	query := c.r.URL.Query()
	found, runs, err := s.cfg.Campaigns.Campaign(c.r.Context(), c.caller(), id)
	if err != nil {
		return reply{}, err
	}
	p.campaignRow, p.Plan, p.Runs = toCampaignRow(found), found.Plan, runs
	q := campaign.ItemQuery{Limit: campaignRows}
	if p.After, err = itemCursor(query.Get("after")); err != nil {
		return reply{}, err
	}
	p.Filter, q.After = query.Get("status"), p.After
	for _, one := range reviewStatuses {
		p.Statuses = append(p.Statuses, one.String())
	}
	if p.Filter != "" {
		if q.Status, err = reviewStatus(p.Filter); err != nil {
			return reply{}, err
		}
	}
	p.Mine = query.Get("show") != "all" && p.Filter == "" && p.campaignRow.Status == "open"
	q.Mine = p.Mine
	list, next, err := s.cfg.Campaigns.Items(c.r.Context(), c.caller(), id, q)
	if err != nil {
		return reply{}, err
	}
	for i := range list {
		item := toReviewItem(&list[i])
		p.CanKeep = p.CanKeep || item.MayDecide && !item.Signed && item.Status == "open"
		p.Items = append(p.Items, item)
	}
	p.Next = next
	if runs {
		if p.Waiting, err = s.cfg.Campaigns.Waiting(c.r.Context(), c.caller(), id); err != nil {
			return reply{}, err
		}
	}
	p.Progress = progressOf(found)
	return c.pageOf(status, ui.Page{Name: "campaign", Title: "Access review " + found.Name, Tab: "campaigns", Data: p})
}

// progressOf returns the picture of a campaign's progress.
func progressOf(c *broker.Campaign) plot.Chart {
	n := &c.Counts
	summary := fmt.Sprintf("%d of %d items are decided, and %d wait.", n.Items-n.Waiting(), n.Items, n.Waiting())
	if c.Status == broker.CampaignClosed {
		summary = fmt.Sprintf("The review is closed. %d of %d items were disabled because no one reviewed them.", n.Disabled, n.Items)
	}
	var columns []plot.Column
	for _, one := range []struct {
		name string
		n    int
	}{{"open", n.Open}, {"second look", n.Second}, {"kept", n.Kept}, {"narrowed", n.Narrowed}, {"ended", n.Ended}, {"disabled", n.Disabled}, {"gone", n.Gone}} {
		tick, _, _ := strings.Cut(one.name, " ") // the whole name does not fit
		columns = append(columns, plot.Column{Label: one.name, Tick: tick, Values: []int{one.n}})
	}
	return plot.Stacked("progress", "Progress", summary, []plot.Series{{Name: "items", Class: "series-2"}}, columns)
}

// keepOnPage keeps the selected items in one decision.
func (s *Server) keepOnPage(c *call) (reply, error) {
	id, err := c.campaignID()
	if err != nil {
		return reply{}, err
	}
	var list []campaign.Seen
	for name := range c.form {
		number, ok := strings.CutPrefix(name, "keep.")
		if !ok {
			continue
		}
		n, err := strconv.Atoi(number)
		if err != nil {
			return reply{}, refuse(broker.ErrInvalidRequest, "the form is damaged: load the page again")
		}
		digest, err := itemDigest(c.form.get(name))
		if err != nil {
			return reply{}, err
		}
		list = append(list, campaign.Seen{Number: n, Digest: digest})
	}
	slices.SortFunc(list, func(a, b campaign.Seen) int { return a.Number - b.Number })
	second, err := s.cfg.Campaigns.KeepAll(c.r.Context(), c.caller(), id, list, c.text("reason"))
	if err == nil {
		return c.redirect(s.to(fmt.Sprintf("/ui/campaigns/%s?done=kept.%d.%d", id, len(list)-len(second), len(second))))
	}
	m := errorRowOf(err)
	if m.fault == serverFault || m.status == http.StatusUnauthorized {
		return reply{}, err
	}
	answer, rendering := s.showCampaign(c, m.status, campaignPage{Failed: c.problemOf(err).Detail, Reason: c.form.get("reason")})
	answer.code = c.problemOf(err).Code
	return answer, rendering
}

type reviewItemPage struct {
	api.ReviewItem
	Name     string // of the campaign
	Deadline campaignRow
	Approved []broker.Approval // of a grant
	Unused   map[string]bool   // parts that no one used
	Keys     bool              // passkeys are possible
	Here     string
	Done     string
	Failed   string
	Again    bool // the viewer should log in again
	Form     form
	CanFix   bool // the viewer may ask to restore
}

// reviewItemPage shows one item.
func (s *Server) reviewItemPage(c *call) (reply, error) {
	return s.showReviewItem(c, http.StatusOK, reviewItemPage{Done: reviewDone(c.r.URL.Query().Get("done"))})
}

func (s *Server) showReviewItem(c *call, status int, p reviewItemPage) (reply, error) {
	key, err := c.itemKey()
	if err != nil {
		return reply{}, err
	}
	d, err := s.cfg.Campaigns.Item(c.r.Context(), c.caller(), key)
	if err != nil {
		return reply{}, err
	}
	p.ReviewItem, p.Name, p.Deadline, p.Approved = toReviewDetails(d), d.Campaign.Name, toCampaignRow(d.Campaign), d.Approved
	p.Unused, p.Keys = map[string]bool{}, s.cfg.Passkeys != nil
	for _, part := range d.Use.UnusedParts {
		p.Unused[part] = true
	}
	p.Here = s.to(fmt.Sprintf("/ui/campaigns/%s/items/%d", key.Campaign, key.Number))
	p.CanFix = d.Suspension != nil && d.Exists
	return c.pageOf(status, ui.Page{Name: "review-item", Title: kindTitleOf(p.Kind) + " " + ui.Short(p.ReviewItem.Name), Tab: "campaigns", Data: p})
}

// kindTitleOf returns the name of a kind of permission for people.
func kindTitleOf(kind string) string {
	return map[string]string{"permit": "Permit", "mark": "Workloads at", "member": "Membership", "supplier": "Ceiling of", "grant": "Grant"}[kind]
}

// decisionOf reads the decision on an item from a form.
func (c *call) decisionOf() (d campaign.Decision, err error) {
	d = campaign.Decision{Verdict: broker.ReviewVerdict(c.form.get("do")), Reason: c.text("reason")}
	if d.Digest, err = itemDigest(c.form.get("digest")); err != nil {
		return d, err
	}
	if d.Verdict == broker.VerdictNarrow {
		for name := range c.form {
			if part, ok := strings.CutPrefix(name, "part."); ok {
				d.Left = append(d.Left, part)
			}
		}
	}
	return d, nil
}

// decideOnPage handles the forms of an item.
func (s *Server) decideOnPage(c *call) (reply, error) {
	done, err := s.carryOutReview(c)
	if err == nil {
		return c.redirect(s.to("/ui/campaigns/" + c.r.PathValue("id") + "/items/" + c.r.PathValue("item") + "?done=" + done))
	}
	m := errorRowOf(err)
	if m.fault == serverFault || m.status == http.StatusUnauthorized || m.status == http.StatusNotFound {
		return reply{}, err
	}
	answer, rendering := s.showReviewItem(c, m.status, reviewItemPage{Failed: c.problemOf(err).Detail, Again: errors.Is(err, broker.ErrLoginStale), Form: c.form})
	answer.code = c.problemOf(err).Code
	return answer, rendering
}

func (s *Server) carryOutReview(c *call) (done string, err error) {
	key, err := c.itemKey()
	if err != nil {
		return "", err
	}
	d, err := c.decisionOf()
	if err != nil {
		return "", err
	}
	if c.form.get("do") == "restore" {
		item, err := s.cfg.Campaigns.Item(c.r.Context(), c.caller(), key)
		if err != nil {
			return "", err
		}
		restored, err := s.cfg.Campaigns.Restore(c.r.Context(), c.caller(), item.ReviewItem.Permission, d.Digest, d.Reason)
		if restored {
			return "restored", err
		}
		return "restoring", err
	}
	if d.Signature, d.Salt, err = c.signed(signedAs(key)); err != nil {
		return "", err
	}
	_, err = s.cfg.Campaigns.Decide(c.r.Context(), c.caller(), key, d)
	return string(d.Verdict), err
}

// signedAs names what a signature is for.
func signedAs(key broker.ReviewItemKey) string {
	return fmt.Sprintf("campaign %s %d", key.Campaign, key.Number)
}

// signReview returns the options for signing a decision on an item.
func (s *Server) signReview(c *call) (reply, error) {
	if s.cfg.Passkeys == nil {
		return reply{}, errNoPasskeys
	}
	key, err := c.itemKey()
	if err != nil {
		return reply{}, err
	}
	d, err := c.decisionOf()
	if err != nil {
		return reply{}, err
	}
	signing, err := s.cfg.Campaigns.Prepare(c.r.Context(), c.caller(), key, d)
	if err != nil {
		return reply{}, err
	}
	return c.toSign(signedAs(key), signing)
}
