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
	"accessbroker.internal/server/ui"
)

// The page of identical requests, where a person decides several with one press. Each
// decision is a vote of its own, bound to the digest of its request.

type alikePage struct {
	First      requestView // stands for all: they differ only in their texts
	Requests   []alikeRow
	Review     bool
	Reasons    []string // what raises the risk
	Facts      api.Facts
	Needs      api.Obligations
	Outcomes   []outcome // of the decisions that were just made
	LogInAgain bool
	Comment    string
	Back       string
	Here       string // the query of this page
}

// An alikeRow is one of the requests.
type alikeRow struct {
	requestView
	From     string // the address of the requester
	Selected bool
}

// An outcome is what became of one decision.
type outcome struct {
	ID, Decided string
	Failed      string // empty: it is recorded
}

// alike shows the requests that wait for the viewer and are identical to one.
func (s *Server) alike(c *call) (reply, error) {
	if err := c.asReader(); err != nil {
		return reply{}, err
	}
	return s.showAlike(c, http.StatusOK, alikePage{})
}

func (s *Server) showAlike(c *call, status int, p alikePage) (reply, error) {
	r, err := s.requestOf(c)
	if err != nil {
		return reply{}, err
	}
	in, err := s.cfg.Broker.Inbox(c.r.Context(), c.caller(), broker.InboxQuery{Like: r, Order: broker.ByAge})
	if err != nil {
		return reply{}, err
	}
	var group broker.InboxGroup
	for _, g := range in.Groups { // more than one only if there are too many for a page
		if g.Has(r.ID) {
			group = g
		}
	}
	if len(in.Groups) > 0 && len(group.Requests) == 0 { // r itself is decided
		group = in.Groups[0]
	}
	if p.Back = c.backToInbox(); len(group.Requests) == 0 && p.Outcomes == nil {
		return c.redirect(s.to(c.keepInbox("/ui/requests/" + r.ID.String()))) // it is decided, or not the viewer's to decide
	}
	p.First, p.Review, p.Reasons = s.view(c, r), group.Review, group.Reasons
	if o := p.First.Decision.Obligations; o != nil {
		p.Needs = *o
	}
	if p.Facts, err = s.facts(c.r.Context(), c.caller(), r); err != nil {
		return reply{}, err
	}
	for _, one := range group.Requests {
		row := alikeRow{requestView: s.view(c, one), Selected: c.form == nil || c.form.get(digestField(one.ID)) != ""}
		if one.SourceIP.IsValid() {
			row.From = one.SourceIP.String()
		}
		p.Requests = append(p.Requests, row)
	}
	title := "Identical requests"
	switch n := len(p.Requests); {
	case n == 1:
		title = "1 request waits"
	case n > 1:
		title = fmt.Sprintf("%d identical requests", n)
	}
	return c.pageOf(status, ui.Page{Name: "alike", Title: title, Tab: "inbox", Data: p})
}

// digestField names the form's field with the digest of a request that the person saw.
func digestField(id broker.RequestID) string { return "digest." + id.String() }

// decideAlike makes the same decision on each selected request. Those that fail are shown
// with the reason, and keep the others from nothing.
func (s *Server) decideAlike(c *call) (reply, error) {
	ids, err := c.selected()
	if err != nil {
		return reply{}, err
	}
	do := c.form.get("do")
	if decisionDone[do] == "" {
		return reply{}, refuse(broker.ErrInvalidRequest, "the form names no action")
	}
	p := alikePage{Comment: c.text("comment")}
	failures := 0
	for _, id := range ids {
		err := s.decideOne(c, id, do)
		if err != nil && errorRowOf(err).status == http.StatusUnauthorized {
			return reply{}, err
		}
		o := outcome{ID: id.String(), Decided: decisionDone[do]}
		if err != nil {
			failures++
			problem := c.problemOf(err)
			o.Failed = strings.Join(append([]string{problem.Detail}, problem.Reasons...), " ")
			p.LogInAgain = p.LogInAgain || errors.Is(err, broker.ErrLoginStale)
		}
		p.Outcomes = append(p.Outcomes, o)
	}
	if failures == 0 && len(ids) > 0 {
		return c.redirect(c.backToInbox("done", do+"."+strconv.Itoa(len(ids))))
	}
	return s.showAlike(c, http.StatusConflict, p)
}

// selected returns the requests that the form selects, in the order of their age.
func (c *call) selected() (ids []broker.RequestID, err error) {
	for name := range c.form {
		text, ok := strings.CutPrefix(name, "digest.")
		if !ok || c.form.get(name) == "" {
			continue
		}
		id, err := broker.ParseRequestID(text)
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	if len(ids) > broker.MaxGroup {
		return nil, refuse(broker.ErrInvalidRequest, "decide at most "+strconv.Itoa(broker.MaxGroup)+" requests at once")
	}
	if len(ids) == 0 {
		return nil, refuse(broker.ErrInvalidRequest, "select at least one request")
	}
	slices.SortFunc(ids, func(x, y broker.RequestID) int { return slices.Compare(x[:], y[:]) })
	return ids, nil
}

var errCancelled = refuse(broker.ErrSignatureRequired, "signing was cancelled or took too long")

// decideOne makes one decision, bound to the digest that the form has for the request.
func (s *Server) decideOne(c *call, id broker.RequestID, do string) error {
	kind := decideVote
	if do == "justified" || do == "unjustified" {
		kind = decideReview
	}
	v := broker.Vote{Approve: do == "approve" || do == "justified", Comment: c.text("comment")}
	if v.Digest.UnmarshalText([]byte(c.form.get(digestField(id)))) != nil {
		return refuse(broker.ErrInvalidRequest, "digest must be the digest of the request that you saw, 64 lower-case hexadecimal digits")
	}
	if c.form.get("unsigned."+id.String()) != "" { // even if policy no longer requires a signature
		return errCancelled
	}
	var err error
	if v.Signature, v.Salt, err = c.signedIn("."+id.String(), kind.name+" "+id.String()); err != nil {
		return err
	}
	_, err = c.asApprover(func(caller broker.Caller) (*broker.Request, error) {
		return kind.decide(s.cfg.Broker, c.r.Context(), caller, id, v)
	})
	return err
}

// decisionDone has the past tense of each decision.
var decisionDone = map[string]string{"approve": "approved", "deny": "denied", "justified": "found justified", "unjustified": "found not justified"}

// decidedTogether is the message after decisions on several requests, which all were
// recorded.
func decidedTogether(done string) string {
	do, count, _ := strings.Cut(done, ".")
	n, err := strconv.Atoi(count)
	if decisionDone[do] == "" || err != nil || n < 1 || n > broker.MaxGroup {
		return ""
	}
	if n == 1 {
		return fmt.Sprintf("1 request %s.", decisionDone[do])
	}
	return fmt.Sprintf("%d requests %s.", n, decisionDone[do])
}
