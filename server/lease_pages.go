package server

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

// The pages of leases and of the kill switch.

type leasesPage struct {
	Leases      []api.Lease
	Next        string
	Holder      string
	Entitlement string
	All         bool // including ended leases
	MayKill     bool
	Blocks      []blockView
	Done        string
	Kinds       []string
}

type blockView struct {
	Kind, Name, Reason, By string
	Since                  time.Time
}

// killKinds are the kinds of selectors of the kill switch.
var killKinds = []string{"holder", "under", "trust_domain", "entitlement", "issuer", "request"}

func (s *Server) leasesPage(c *call) (reply, error) {
	ctx, b, query := c.r.Context(), s.cfg.Broker, c.r.URL.Query()
	p := leasesPage{Holder: query.Get("holder"), Entitlement: query.Get("entitlement"), All: query.Has("all"), Kinds: killKinds}
	q := broker.LeaseQuery{Holder: broker.Everyone, Entitlement: p.Entitlement, Live: !p.All, Now: c.now}
	if p.Holder != "" {
		q.Holder = p.Holder
	}
	if text := query.Get("before"); text != "" {
		var err error
		if q.Before, err = broker.ParseLeaseID(text); err != nil {
			return reply{}, err
		}
	}
	page, next, err := b.Leases(ctx, c.caller(), q)
	if err != nil {
		return reply{}, err
	}
	p.Next = next.String()
	for _, l := range page {
		p.Leases = append(p.Leases, toLease(l, c.now))
	}
	if p.MayKill = b.May(ctx, c.caller(), broker.ActionBlock); p.MayKill {
		blocks, err := b.Blocks(ctx, c.caller())
		if err != nil {
			return reply{}, err
		}
		for _, block := range blocks {
			p.Blocks = append(p.Blocks, blockView{block.Selector.Kind, block.Selector.Name, block.Reason, block.By, block.Since})
		}
	}
	p.Done = killDone(query)
	return c.page("leases", "Leases", "leases", p)
}

// killDone returns the message for a browser that comes from the kill switch.
func killDone(query url.Values) string {
	revoking, expiring := count(query, "revoking"), count(query, "expiring")
	switch query.Get("done") {
	case "lifted":
		return "The block was lifted."
	case "ended":
		return "The request was ended. " + killed(revoking, expiring)
	case "killed":
		return "Blocked. " + killed(revoking, expiring)
	}
	return ""
}

func count(query url.Values, name string) int {
	n, _ := strconv.Atoi(query.Get(name)) // a malformed number counts as none
	return n
}

// killed says what becomes of the credentials that the kill switch selected.
func killed(revoking, expiring int) string {
	var parts []string
	if revoking > 0 {
		parts = append(parts, fmt.Sprintf(plural(revoking, "%d credential is being revoked.", "%d credentials are being revoked."), revoking))
	}
	if expiring > 0 {
		parts = append(parts, fmt.Sprintf(plural(expiring, "%d credential cannot be revoked and expires by itself.", "%d credentials cannot be revoked and expire by themselves."), expiring))
	}
	if len(parts) == 0 {
		return "There were no live credentials."
	}
	return strings.Join(parts, " ")
}

// plural returns the sentence for one thing or for several.
func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

type killPage struct {
	Kind, Name, Reason string
	Preview            api.KillPreview
	Blocks             bool // whether it places a block: false for a request
	Stale              bool // the selection has changed since the last preview
}

// Live returns the number of selected leases that are live.
func (p killPage) Live() int { return p.Preview.Leases - p.Preview.Ended }

// Sessions reports whether the kill switch also ends a person's sessions.
func (p killPage) Sessions() bool {
	return p.Kind == "holder" && !strings.HasPrefix(p.Name, "spiffe://")
}

func (c *call) formSelector() (broker.Selector, error) {
	name := strings.TrimSpace(c.form.get("name"))
	selector := api.Selector{}
	switch c.form.get("kind") {
	case "holder":
		selector.Holder = name
	case "under":
		selector.Under = name
	case "trust_domain":
		selector.TrustDomain = name
	case "entitlement":
		selector.Entitlement = name
	case "issuer":
		selector.Issuer = name
	case "request":
		selector.Request = name
	}
	return readSelector(selector)
}

// killPage previews the kill switch, triggers it, or lifts a block.
func (s *Server) killPage(c *call) (reply, error) {
	ctx, b := c.r.Context(), s.cfg.Broker
	selector, err := c.formSelector()
	if err != nil {
		return reply{}, err
	}
	reason := c.text("reason")
	switch c.form.get("do") {
	case "lift":
		if err := b.Lift(ctx, c.caller(), selector, reason); err != nil {
			return reply{}, err
		}
		return c.redirect(s.to("/ui/leases?done=lifted"))
	case "kill", "force":
		var seen audit.Digest
		force := c.form.get("do") == "force"
		if !force && seen.UnmarshalText([]byte(c.form.get("digest"))) != nil {
			return reply{}, broker.ErrPreviewStale
		}
		c.extend(broker.KillDeadline)
		hit, err := b.RevokeAll(ctx, c.caller(), selector, reason, seen, force)
		switch {
		case errors.Is(err, broker.ErrPreviewStale):
			return s.previewPage(c, selector, reason, true)
		case err != nil:
			return reply{}, err
		}
		done := url.Values{"done": {"killed"}, "revoking": {strconv.Itoa(hit.Leases - hit.Irrevocable)}, "expiring": {strconv.Itoa(hit.Irrevocable)}}
		if !selector.Request.IsZero() {
			done.Set("done", "ended")
		}
		return c.redirect(s.to("/ui/leases?" + done.Encode()))
	}
	return s.previewPage(c, selector, reason, false)
}

// previewPage shows what the kill switch would revoke now.
func (s *Server) previewPage(c *call, selector broker.Selector, reason string, stale bool) (reply, error) {
	if reason == "" {
		return reply{}, refuse(broker.ErrJustificationRequired, "give a reason")
	}
	preview, err := s.cfg.Broker.Preview(c.r.Context(), c.caller(), selector)
	if err != nil {
		return reply{}, err
	}
	return c.page("kill", "Kill switch", "leases", killPage{c.form.get("kind"), strings.TrimSpace(c.form.get("name")), reason, toKillPreview(preview), c.form.get("kind") != "request", stale})
}
