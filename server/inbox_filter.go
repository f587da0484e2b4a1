package server

import (
	"net/url"
	"strconv"
	"strings"

	"accessbroker.internal/broker"
)

// An inboxFilter is the state of an inbox in a URL. Links to requests carry it in their
// inbox parameter, so that the way back leads to the same page.
type inboxFilter struct {
	Text, Entitlement, Requester, Team, Risk, Order string
	After, Before                                   string
}

// A choice is a value of a parameter, and its name on the page.
type choice struct{ Value, Name string }

var inboxOrders = []choice{{"", "riskiest first"}, {"oldest", "oldest first"}, {"newest", "newest first"}, {"deadline", "lapsing soonest first"}}

var orders = map[string]broker.InboxOrder{"": broker.ByRisk, "risk": broker.ByRisk, "oldest": broker.ByAge, "newest": broker.ByNewest, "deadline": broker.ByDeadline}

var risks = []choice{{"high", "high"}, {"medium", "medium"}, {"low", "low"}}

var riskNames = map[broker.Risk]string{broker.RiskLow: "low", broker.RiskMedium: "medium", broker.RiskHigh: "high"}

// parseRisk returns the level of a name; zero for the empty one.
func parseRisk(name string) (broker.Risk, error) {
	for risk, text := range riskNames {
		if text == name {
			return risk, nil
		}
	}
	if name != "" {
		return 0, refuse(broker.ErrInvalidRequest, "risk must be low, medium or high")
	}
	return 0, nil
}

// maxFilterText bounds the other texts of a filter: a SPIFFE ID has at most 2,048 bytes.
const maxFilterText = 2048

// maxSearch bounds the text of a search, in bytes.
const maxSearch = 200

// checkSearch checks the text of a search.
func checkSearch(text string) error {
	if len(text) > maxSearch {
		return refuse(broker.ErrInvalidRequest, "q must have at most "+strconv.Itoa(maxSearch)+" bytes")
	}
	return nil
}

// readInboxFilter reads the state of an inbox. A wrong value selects nothing that it does
// not name: it is ignored and reported.
func readInboxFilter(values url.Values) (f inboxFilter, q broker.InboxQuery, fault error) {
	get := func(name string) string { return strings.TrimSpace(values.Get(name)) }
	f = inboxFilter{
		Text: get("q"), Entitlement: get("entitlement"), Requester: get("requester"), Team: get("team"), Risk: get("risk"), Order: get("order"),
		After: get("after"), Before: get("before"),
	}
	note := func(err error) {
		if fault == nil {
			fault = err
		}
	}
	for _, text := range []string{f.Entitlement, f.Requester, f.Team} {
		if len(text) > maxFilterText {
			note(refuse(broker.ErrInvalidRequest, "a filter is too long"))
			return inboxFilter{}, q, fault
		}
	}
	var err error
	q = broker.InboxQuery{Text: f.Text, Entitlement: f.Entitlement, Requester: requesterNamed(f.Requester), Team: f.Team}
	if err = checkSearch(f.Text); err != nil {
		f.Text, q.Text = "", ""
		note(err)
	}
	if q.Risk, err = parseRisk(f.Risk); err != nil {
		f.Risk = ""
		note(err)
	}
	var known bool
	if q.Order, known = orders[f.Order]; !known {
		f.Order = ""
		note(refuse(broker.ErrInvalidRequest, "order must be risk, oldest, newest or deadline"))
	}
	if q.After, err = parsePlace(f.After); err != nil {
		f.After = ""
		note(err)
	}
	if q.Before, err = parsePlace(f.Before); err != nil {
		f.Before = ""
		note(err)
	}
	return f, q, fault
}

// requesterNamed returns the ID for a name as a page shows it, without the scheme.
func requesterNamed(name string) string {
	if domain, _, _ := strings.Cut(name, "/"); strings.Contains(domain, ".") && !strings.Contains(name, "://") {
		return "spiffe://" + name
	}
	return name
}

// parsePlace parses the text of a place. The empty text is no place.
func parsePlace(text string) (p broker.InboxPlace, err error) {
	if text == "" {
		return p, nil
	}
	wrong := refuse(broker.ErrInvalidRequest, "the position in the inbox is malformed: start at its first page")
	rank, id, _ := strings.Cut(text, ".")
	if p.Rank, err = strconv.ParseInt(rank, 10, 64); err != nil {
		return broker.InboxPlace{}, wrong
	}
	if p.ID, err = broker.ParseRequestID(id); err != nil {
		return broker.InboxPlace{}, wrong
	}
	return p, nil
}

func placeText(p broker.InboxPlace) string {
	if p.IsZero() {
		return ""
	}
	return strconv.FormatInt(p.Rank, 10) + "." + p.ID.String()
}

// query returns the parameters of the filter, without its position.
func (f inboxFilter) query() url.Values {
	v := url.Values{}
	for _, pair := range [][2]string{{"q", f.Text}, {"entitlement", f.Entitlement}, {"requester", f.Requester}, {"team", f.Team}, {"risk", f.Risk}, {"order", f.Order}} {
		if pair[1] != "" {
			v.Set(pair[0], pair[1])
		}
	}
	return v
}

// at returns the parameters of the filter and its position.
func (f inboxFilter) at() string {
	v := f.query()
	for name, place := range map[string]string{"after": f.After, "before": f.Before} {
		if place != "" {
			v.Set(name, place)
		}
	}
	return v.Encode()
}

// Filtered reports whether the filter may leave decisions out.
func (f inboxFilter) Filtered() bool {
	f.Order, f.After, f.Before = "", "", ""
	return f != inboxFilter{}
}

// Query returns the parameters of the filter as a page's link has them.
func (f inboxFilter) Query() string { return f.query().Encode() }

// To returns the query of another page of the inbox.
func (f inboxFilter) To(name string, place broker.InboxPlace) string {
	v := f.query()
	v.Set(name, placeText(place))
	return "?" + v.Encode()
}

// inboxFilter returns the state of the inbox from which the viewer came.
func (c *call) inboxFilter() (inboxFilter, broker.InboxQuery) {
	values, err := url.ParseQuery(c.r.URL.Query().Get("inbox"))
	if err != nil {
		return inboxFilter{}, broker.InboxQuery{}
	}
	f, q, _ := readInboxFilter(values)
	return f, q
}

// backToInbox returns the path of the inbox from which the viewer came, with further
// pairs of parameters.
func (c *call) backToInbox(pairs ...string) string {
	f, _ := c.inboxFilter()
	v, _ := url.ParseQuery(f.at())
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	if len(v) == 0 {
		return c.s.to("/ui/")
	}
	return c.s.to("/ui/?" + v.Encode())
}

// keepInbox adds the state of the inbox from which the viewer came to the path of another
// page.
func (c *call) keepInbox(path string) string {
	f, _ := c.inboxFilter()
	state := f.at()
	if state == "" {
		return path
	}
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	return path + separator + url.Values{"inbox": {state}}.Encode()
}
