package server

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/broker"
	"accessbroker.internal/broker/inventory"
	"accessbroker.internal/server/ui"
)

// The pages of the inventory.

type identitiesPage struct {
	Identities []api.KnownIdentity
	Filter     inventory.Filter
	Fault      string // what is wrong with the filter
	Filtered   bool
	Problems   []problemChoice
	Known      int
	Uncounted  int
	First      string // the query of the first page, if this is a later one
	Next       string // the query of the next page
	CSV        string // the query of the same list as CSV
}

type problemChoice struct{ Code, Title string }

func problemChoices() (list []problemChoice) {
	for _, code := range inventory.ProblemCodes() {
		list = append(list, problemChoice{string(code), ui.Problem(string(code))})
	}
	return list
}

// maxRowBytes bounds the ids and names on one page of the inventory: SPIFFE IDs may be long.
const maxRowBytes = 20_000

// identitiesPage lists the inventory.
func (s *Server) identitiesPage(c *call) (reply, error) {
	c.query = form(c.r.URL.Query())
	f, err := c.identityFilter()
	p := identitiesPage{Filter: f, Problems: problemChoices()}
	p.Filtered = f.Words != "" || f.Kind != "" || f.Team != "" || f.Problem != ""
	if err != nil && s.cfg.Inventory.MayList(c.r.Context(), c.caller()) { // a wrong filter keeps the form
		p.Fault = c.problemOf(err).Detail
		return c.pageOf(http.StatusBadRequest, ui.Page{Name: "identities", Title: "Identities", Tab: "identities", Data: p})
	}
	page, err := s.cfg.Inventory.List(c.r.Context(), c.caller(), f)
	if err != nil {
		return reply{}, err
	}
	p.Known, p.Uncounted = int(page.Known), int(page.Behind)
	next, size := page.Next, 0
	for _, i := range page.Identities {
		if size += rowBytes(i); size > maxRowBytes && len(p.Identities) > 0 {
			next = p.Identities[len(p.Identities)-1].ID
			break
		}
		p.Identities = append(p.Identities, toKnown(i, c.now))
	}
	p.CSV = filterQuery(f, "")
	if f.After != "" {
		p.First = "?" + filterQuery(f, "")
	}
	if next != "" {
		p.Next = "?" + filterQuery(f, next)
	}
	return c.page("identities", "Identities", "identities", p)
}

func rowBytes(i *inventory.Identity) int {
	n := 2*len(i.ID) + len(i.Team) + len(i.Sponsor)
	for _, name := range slices.Concat(i.Accountable, i.Suppliers) {
		n += len(name)
	}
	for _, p := range i.Problems {
		n += len(p.Text)
	}
	return n
}

// filterQuery returns the query of a list after an id.
func filterQuery(f inventory.Filter, after string) string {
	q := url.Values{}
	for name, value := range map[string]string{"q": f.Words, "kind": string(f.Kind), "team": f.Team, "problem": f.Problem, "cursor": after} {
		if value != "" {
			q.Set(name, value)
		}
	}
	return q.Encode()
}

// identitiesFile is the list of the page as CSV.
func (s *Server) identitiesFile(c *call) (reply, error) {
	c.query = form(c.r.URL.Query())
	if c.query.get("limit") == "" {
		c.query["limit"] = []string{strconv.Itoa(pageMost)}
	}
	return s.exportIdentities(c)
}

type identityPage struct {
	api.KnownIdentity
	Now       time.Time
	Whole     bool // the viewer may see the whole inventory
	MayAudit  bool
	MayKill   bool
	Unused    []api.KnownUse // what it may request and did not use
	UsedParts []api.KnownUse
	Standings []standingView
	Days      []dayView
}

// A standingView is what sources state about an identity.
type standingView struct {
	Subject string
	Facts   []factView
}

type factView struct {
	Source, State, Cause string
	From, Until          time.Time
	Confirmed            time.Time
}

// A dayView is a row of how many credentials were issued.
type dayView struct {
	Title string
	Count int
}

// oneIdentityPage shows one identity.
func (s *Server) oneIdentityPage(c *call) (reply, error) {
	id := c.r.URL.Query().Get("id")
	d, err := s.cfg.Inventory.Identity(c.r.Context(), c.caller(), id)
	if err != nil {
		return reply{}, err
	}
	p := identityPage{KnownIdentity: toDetail(d, c.now), Now: c.now, Whole: d.Whole, MayAudit: c.mayAudit()}
	p.MayKill = s.cfg.Broker.May(c.r.Context(), c.caller(), broker.ActionBlock)
	since := c.now.AddDate(0, 0, -90)
	for _, u := range p.Uses {
		if u.LastUsed.Before(since) {
			p.Unused = append(p.Unused, u)
		} else {
			p.UsedParts = append(p.UsedParts, u)
		}
	}
	for _, days := range []int{1, 7, 30, 90} {
		title := map[int]string{1: "Today", 7: "7 days", 30: "30 days", 90: "90 days"}[days]
		p.Days = append(p.Days, dayView{title, d.Credentials(days, c.now)})
	}
	for _, standing := range d.Standings {
		v := standingView{Subject: standing.String()}
		for _, f := range standing.Facts {
			v.Facts = append(v.Facts, factView{f.Source, string(f.State), strings.ReplaceAll(f.Cause, "_", " "), f.From, f.Until, f.Confirmed})
		}
		p.Standings = append(p.Standings, v)
	}
	return c.page("identity", ui.Short(id), "identities", p)
}
