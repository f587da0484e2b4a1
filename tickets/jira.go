package tickets

import (
	"context"
	"encoding/json"
	"net/url"
	"strings"
	"time"
)

// A JiraConfig describes a Jira Cloud site, or a Jira Server or Data Center.
type JiraConfig struct {
	Host
	Server     bool   // REST API 2 of Server and Data Center, not 3 of Cloud
	AssigneeBy string // a field of the user: accountId, name or emailAddress
	From       string // the field with the start of the change window; empty: tickets have none
	Until      string
}

// jira asks "Get issue": GET /rest/api/3/issue/{issueIdOrKey} of Cloud, and /rest/api/2/
// of Server and Data Center.
type jira struct {
	cfg    JiraConfig
	client *client
}

// NewJira returns the source of Jira's issues.
func NewJira(c JiraConfig) (Source, error) {
	client, err := newClient(c.Host)
	if err != nil {
		return nil, err
	}
	return &jira{c, client}, nil
}

// A jiraIssue is the part of Jira's IssueBean that the broker requests.
type jiraIssue struct {
	Key    string                     `json:"key"`
	Fields map[string]json.RawMessage `json:"fields"`
}

type jiraStatus struct {
	Name     string `json:"name"`
	Category struct {
		Key string `json:"key"` // new, indeterminate, done or undefined
	} `json:"statusCategory"`
}

// Fetch implements Source. Jira answers for a moved issue with its new key, and for a key
// in lower case with the issue: the caller compares the ID.
func (j *jira) Fetch(ctx context.Context, id string) (Answer, error) {
	api, fields := "3", []string{"summary", "status", "assignee"}
	if j.cfg.Server {
		api = "2"
	}
	if j.cfg.From != "" {
		fields = append(fields, j.cfg.From, j.cfg.Until)
	}
	address, err := j.client.path(url.Values{"fields": {strings.Join(fields, ",")}}, "rest", "api", api, "issue", id)
	if err != nil {
		return Answer{}, err
	}
	var issue jiraIssue
	if err := j.client.get(ctx, address, nil, &issue); err != nil {
		return Answer{}, err
	}
	return j.read(issue)
}

func (j *jira) read(issue jiraIssue) (Answer, error) {
	var status jiraStatus
	var assignee map[string]any
	a := Answer{ID: issue.Key}
	for field, v := range map[string]any{"summary": &a.Title, "status": &status, "assignee": &assignee} {
		if raw, ok := issue.Fields[field]; ok && json.Unmarshal(raw, v) != nil {
			return Answer{}, unexpected(field)
		}
	}
	if status.Name == "" {
		return Answer{}, unexpected("status")
	}
	a.Status = status.Name
	a.Open = status.Category.Key == "new" || status.Category.Key == "indeterminate"
	if who, _ := assignee[j.cfg.AssigneeBy].(string); who != "" {
		a.Assignees = []string{who}
	}
	if shown, _ := assignee["displayName"].(string); assignee != nil {
		a.Assignee = shown
	}
	if j.cfg.From != "" {
		a.From, a.Until = jiraTime(issue.Fields[j.cfg.From]), jiraTime(issue.Fields[j.cfg.Until])
	}
	return a, nil
}

// jiraTime reads a date-time field. A date without a time is no end of a window, because
// Jira does not state in which zone its day is.
func jiraTime(raw json.RawMessage) time.Time {
	var text string
	if json.Unmarshal(raw, &text) != nil {
		return time.Time{}
	}
	for _, layout := range []string{"2006-01-02T15:04:05.000-0700", time.RFC3339Nano} {
		if at, err := time.Parse(layout, text); err == nil {
			return at
		}
	}
	return time.Time{}
}
