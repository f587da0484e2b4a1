package server

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/server/ui"
)

// The pages of the kill switch.

// killKinds are the kinds of selectors of the kill switch.
var killKinds = []string{"holder", "under", "trust_domain", "entitlement", "issuer", "request"}

// killForm is the page with the form of the kill switch and the blocks.
type killForm struct {
	Kind, Name, Reason string
	NameFault          string // what is wrong with Name
	ReasonFault        string
	Kinds              []string
	Targets            *broker.Targets
	Blocks             []api.Block // of the page
	Page               listPage
	Done               string
}

// killFormPage shows the form. A link of a lease's row fills it in.
func (s *Server) killFormPage(c *call) (reply, error) {
	query := c.r.URL.Query()
	return s.showKillForm(c, http.StatusOK, killForm{Kind: query.Get("kind"), Name: query.Get("name"), Done: killDone(query)})
}

func (s *Server) showKillForm(c *call, status int, p killForm) (reply, error) {
	targets, err := s.cfg.Broker.Targets(c.r.Context(), c.caller())
	if err != nil {
		return reply{}, err
	}
	p.Kinds, p.Targets, p.Blocks = killKinds, targets, nil
	blocks := toBlocks(targets.Blocks)
	slices.SortStableFunc(blocks, func(x, y api.Block) int { return y.Since.Compare(x.Since) })
	p.Blocks, p.Page = cutPage(blocks, c.r.URL.Query().Get("blocks"))
	if !slices.Contains(killKinds, p.Kind) {
		p.Kind = killKinds[0]
	}
	return c.pageOf(status, ui.Page{Name: "kill", Title: "Kill switch", Tab: "kill", Data: p})
}

// killDone returns the message for a browser that comes from the kill switch.
func killDone(query url.Values) string {
	ended := killed(count(query, "revoking"), count(query, "expiring"), count(query, "lasting"))
	switch query.Get("done") {
	case "lifted":
		return "The block was lifted."
	case "ended":
		return "The request was ended. " + ended
	case "killed":
		return "Blocked. " + ended
	}
	return ""
}

func count(query url.Values, name string) int {
	n, _ := strconv.Atoi(query.Get(name)) // a malformed number counts as none
	return n
}

// killed describes what happens to the credentials that the kill switch selected.
func killed(revoking, expiring, lasting int) string {
	var parts []string
	add := func(n int, one, many string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf(plural(n, one, many), n))
		}
	}
	add(revoking, "%d credential is being revoked.", "%d credentials are being revoked.")
	add(expiring, "%d credential cannot be revoked and expires by itself.", "%d credentials cannot be revoked and expire by themselves.")
	add(lasting, "%d credential can neither be revoked nor expires: change the system that it opens.", "%d credentials can neither be revoked nor expire: change the systems that they open.")
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

// killPreview is the page that asks for confirmation.
type killPreview struct {
	Kind, Name, Reason string
	Preview            api.KillPreview
	Blocks             bool // whether it places a block: false for a request
	Stale              bool // the selection has changed since the last preview
}

// Sessions reports whether the kill switch also ends a person's sessions.
func (p killPreview) Sessions() bool {
	_, _, err := broker.ParsePerson(p.Name)
	return p.Kind == "holder" && err == nil
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

// useKillSwitch previews the kill switch, triggers it, or lifts a block. A refusal shows
// the form again, with the message by the field.
func (s *Server) useKillSwitch(c *call) (reply, error) {
	answer, err := s.tryKillSwitch(c)
	row := errorRowOf(err)
	if err == nil || row.fault == serverFault || row.status == http.StatusUnauthorized || row.status == http.StatusForbidden {
		return answer, err
	}
	p := killForm{Kind: c.form.get("kind"), Name: strings.TrimSpace(c.form.get("name")), Reason: c.text("reason")}
	problem := c.problemOf(err)
	if errors.Is(err, broker.ErrJustificationRequired) {
		p.ReasonFault = problem.Detail
	} else {
		p.NameFault = problem.Detail
	}
	answer, rendering := s.showKillForm(c, row.status, p)
	answer.code = problem.Code
	return answer, rendering
}

func (s *Server) tryKillSwitch(c *call) (reply, error) {
	selector, err := c.formSelector()
	if err != nil {
		return reply{}, err
	}
	switch c.form.get("do") {
	case "lift":
		if err := s.cfg.Broker.Lift(c.r.Context(), c.caller(), selector, c.text("reason")); err != nil {
			return reply{}, err
		}
		return c.redirect(s.to("/ui/kill?done=lifted"))
	case "kill", "force":
		return s.pageKills(c, selector)
	}
	return s.previewPage(c, selector, false)
}

// pageKills triggers the kill switch for what the previous page showed.
func (s *Server) pageKills(c *call, selector broker.Selector) (reply, error) {
	consent := broker.Consent{Force: c.form.get("do") == "force", Unmatched: c.form.get("unmatched") != ""}
	if !consent.Force && consent.Seen.UnmarshalText([]byte(c.form.get("digest"))) != nil {
		return s.previewPage(c, selector, true)
	}
	c.extend(broker.KillDeadline)
	hit, err := s.cfg.Broker.RevokeAll(c.r.Context(), c.caller(), selector, c.text("reason"), consent)
	switch {
	case errors.Is(err, broker.ErrPreviewStale):
		return s.previewPage(c, selector, true)
	case errors.Is(err, broker.ErrUnmatched):
		return s.previewPage(c, selector, false)
	case err != nil:
		return reply{}, err
	}
	preview := toKillPreview(hit)
	done := url.Values{"done": {"killed"}}
	if !selector.Request.IsZero() {
		done.Set("done", "ended")
	}
	for name, n := range map[string]int{"revoking": preview.Revocable(), "expiring": preview.Expiring(), "lasting": preview.Lasting} {
		if n > 0 {
			done.Set(name, strconv.Itoa(n))
		}
	}
	return c.redirect(s.to("/ui/kill?" + done.Encode()))
}

// previewPage shows what the kill switch would revoke now.
func (s *Server) previewPage(c *call, selector broker.Selector, stale bool) (reply, error) {
	p := killPreview{Kind: c.form.get("kind"), Name: strings.TrimSpace(c.form.get("name")), Reason: c.text("reason"), Blocks: selector.Request.IsZero(), Stale: stale}
	preview, err := s.cfg.Broker.Preview(c.r.Context(), c.caller(), selector)
	switch {
	case err != nil:
		return reply{}, err
	case p.Reason == "":
		return reply{}, refuse(broker.ErrJustificationRequired, "give a reason")
	}
	p.Preview = toKillPreview(preview)
	return c.page("kill-preview", "Kill switch", "kill", p)
}
