package tickets

import (
	"context"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A ServiceNowConfig describes one table of a ServiceNow instance.
type ServiceNowConfig struct {
	Host
	Table       string // incident, change_request, …
	AssigneeBy  string // "assigned_to", the sys_id of the user, or a field of the user, such as "assigned_to.user_name"
	From, Until string // fields of the change window; empty: tickets have none
}

// serviceNow asks the Table API: GET /api/now/table/{tableName}.
type serviceNow struct {
	cfg    ServiceNowConfig
	client *client
}

// NewServiceNow returns the source of a ServiceNow table.
func NewServiceNow(c ServiceNowConfig) (Source, error) {
	client, err := newClient(c.Host)
	if err != nil {
		return nil, err
	}
	return &serviceNow{c, client}, nil
}

// numberForm is the form of a task's number. The number becomes a part of an encoded
// query, in which "^" begins another condition and "javascript:" runs a script on the
// instance.
var numberForm = regexp.MustCompile(`^[A-Za-z]{0,20}[0-9]{1,40}$`)

// A tableValue is a field with sysparm_display_value=all.
type tableValue struct {
	Display string `json:"display_value"`
	Value   string `json:"value"` // times are in UTC
}

// Fetch implements Source.
func (s *serviceNow) Fetch(ctx context.Context, id string) (Answer, error) {
	if !numberForm.MatchString(id) {
		return Answer{}, ErrNoTicket
	}
	fields := []string{"number", "short_description", "state", "active", "assigned_to"}
	for _, more := range []string{s.cfg.AssigneeBy, s.cfg.From, s.cfg.Until} {
		if more != "" && !slices.Contains(fields, more) {
			fields = append(fields, more)
		}
	}
	address, err := s.client.path(url.Values{
		"sysparm_query": {"number=" + id}, "sysparm_fields": {strings.Join(fields, ",")}, "sysparm_display_value": {"all"},
		"sysparm_exclude_reference_link": {"true"}, "sysparm_limit": {"2"},
	}, "api", "now", "table", s.cfg.Table)
	if err != nil {
		return Answer{}, err
	}
	var answer struct {
		Result *[]map[string]tableValue `json:"result"`
	}
	if err := s.client.get(ctx, address, nil, &answer); err != nil {
		return Answer{}, err
	}
	if answer.Result == nil {
		return Answer{}, unexpected("result")
	}
	switch rows := *answer.Result; len(rows) {
	case 0:
		return Answer{}, ErrNoTicket
	case 1:
		return s.read(rows[0])
	}
	return Answer{}, &Failure{Err: errors.New("the tracker has several tickets of that number")}
}

func (s *serviceNow) read(row map[string]tableValue) (Answer, error) {
	if row["state"].Value == "" {
		return Answer{}, unexpected("state")
	}
	a := Answer{
		ID: row["number"].Value, Title: row["short_description"].Value, Status: row["state"].Display, Code: row["state"].Value,
		Open:     row["active"].Value == "true" && !slices.Contains(doneStates[s.cfg.Table], row["state"].Value),
		Assignee: row["assigned_to"].Display,
	}
	if who := row[s.cfg.AssigneeBy].Value; who != "" {
		a.Assignees = []string{who}
	}
	if s.cfg.From != "" {
		a.From, a.Until = tableTime(row[s.cfg.From].Value), tableTime(row[s.cfg.Until].Value)
	}
	return a, nil
}

// doneStates are the states of the base system in which a record is still active, although
// the work is done.
var doneStates = map[string][]string{
	"incident":       {"6"}, // resolved
	"problem":        {"106"},
	"change_request": {"0"}, // review
}

// tableTime reads a date-time value, which is in UTC.
func tableTime(text string) time.Time {
	at, err := time.Parse(time.DateTime, text)
	if err != nil {
		return time.Time{}
	}
	return at
}
