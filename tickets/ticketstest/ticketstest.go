// Package ticketstest has small copies of ticket systems for tests, as http.Handlers. They
// follow the published descriptions of the APIs: Jira Cloud's REST API 3 and Jira Server's
// REST API 2 ("Get issue"), ServiceNow's Table API, and GitHub's REST API 2022-11-28 ("Get
// an issue"). They have the paths, parameters, statuses, headers and JSON that the broker
// uses, and nothing else; they are not these systems.
package ticketstest

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A Ticket is a ticket of a fake system.
type Ticket struct {
	ID       string // Jira's key, ServiceNow's number, GitHub's number
	Title    string
	Status   string // "To Do", "In Progress", "Done"; of ServiceNow "2"; of GitHub "open", "closed"
	Category string // of Jira's status: new, indeterminate or done; empty: as of the usual statuses
	Assignee string // Jira's accountId or name, ServiceNow's sys_id, GitHub's logins with commas; empty: nobody
	Name     string // of the assignee
	From     time.Time
	Until    time.Time
	Moved    string // Jira: the key that the issue has now; GitHub: the repository that it was transferred to
	Deleted  bool   // GitHub
	Pull     bool   // GitHub: it is a pull request
}

// A System is a fake system. It is safe for concurrent use.
type System struct {
	kind string

	// Auth is the Authorization header that a call must have; empty: any.
	Auth string

	// Repository of GitHub, "owner/name". Table of ServiceNow.
	Repository, Table string

	mu      sync.Mutex
	tickets map[string]Ticket
	calls   map[string]int
	broken  http.HandlerFunc
}

// NewJira returns a Jira Cloud site; with server, a Jira Server.
func NewJira(server bool) *System {
	if server {
		return newSystem("jira-server")
	}
	return newSystem("jira")
}

// NewServiceNow returns a ServiceNow instance with one table.
func NewServiceNow(table string) *System {
	s := newSystem("servicenow")
	s.Table = table
	return s
}

// NewGitHub returns the API of GitHub with one repository.
func NewGitHub(repository string) *System {
	s := newSystem("github")
	s.Repository = repository
	return s
}

func newSystem(kind string) *System {
	return &System{kind: kind, tickets: map[string]Ticket{}, calls: map[string]int{}}
}

// Put adds or replaces a ticket.
func (s *System) Put(t Ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tickets[t.ID] = t
}

// Change changes a ticket.
func (s *System) Change(id string, change func(*Ticket)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tickets[id]
	if !ok {
		panic("there is no ticket " + id)
	}
	change(&t)
	s.tickets[id] = t
}

// Remove deletes a ticket, so that the system does not know it.
func (s *System) Remove(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tickets, id)
}

// Break has a handler answer every call; nil mends the system.
func (s *System) Break(h http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = h
}

// Calls returns the number of calls about a ticket.
func (s *System) Calls(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[id]
}

// find counts a call and returns the ticket.
func (s *System) find(id string) (Ticket, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[id]++
	t, ok := s.tickets[id]
	return t, ok
}

// ServeHTTP implements http.Handler.
func (s *System) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	broken := s.broken
	if broken != nil {
		s.calls[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]++
	}
	s.mu.Unlock()
	switch {
	case broken != nil:
		broken(w, r)
	case r.Method != http.MethodGet:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case r.UserAgent() == "" || strings.HasPrefix(r.UserAgent(), "Go-http-client"):
		w.WriteHeader(http.StatusForbidden) // GitHub requires a user agent that names the program
	case s.kind == "servicenow":
		s.serviceNow(w, r)
	case s.kind == "github":
		s.gitHub(w, r)
	default:
		s.jira(w, r)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

type object map[string]any

// unauthorized reports whether it refused a call without the right credentials.
func (s *System) unauthorized(w http.ResponseWriter, r *http.Request, body object) bool {
	if s.Auth == "" || r.Header.Get("Authorization") == s.Auth {
		return false
	}
	answer(w, http.StatusUnauthorized, body)
	return true
}

// jira answers GET /rest/api/{3,2}/issue/{issueIdOrKey}?fields=….
func (s *System) jira(w http.ResponseWriter, r *http.Request) {
	api := map[string]string{"jira": "/rest/api/3/issue/", "jira-server": "/rest/api/2/issue/"}[s.kind]
	key, ok := strings.CutPrefix(r.URL.EscapedPath(), api)
	if !ok || strings.Contains(key, "/") {
		answer(w, http.StatusNotFound, object{"message": "null for uri: " + r.URL.Path, "status-code": 404})
		return
	}
	if s.unauthorized(w, r, object{"errorMessages": []string{"You are not authenticated. Authentication required to perform this operation."}, "errors": object{}}) {
		return
	}
	t, ok := s.find(strings.ToUpper(key)) // "Jira performs a case-insensitive search"
	if !ok {
		answer(w, http.StatusNotFound, object{"errorMessages": []string{"Issue does not exist or you do not have permission to see it."}, "errors": object{}})
		return
	}
	all := s.jiraFields(r, t)
	fields := object{}
	for name := range strings.SplitSeq(r.URL.Query().Get("fields"), ",") {
		if value, ok := all[name]; ok {
			fields[name] = value
		}
	}
	answer(w, http.StatusOK, object{
		"expand": "renderedFields,names,schema,operations,editmeta,changelog,versionedRepresentations", "id": "10002",
		"self": "https://" + r.Host + api + "10002", "key": cmp.Or(t.Moved, t.ID), "fields": fields,
	})
}

var jiraCategories = map[string]string{"To Do": "new", "In Progress": "indeterminate", "In Review": "indeterminate", "Done": "done"}

func (s *System) jiraFields(r *http.Request, t Ticket) object {
	category := cmp.Or(t.Category, jiraCategories[t.Status], "undefined")
	fields := object{
		"summary": t.Title, "assignee": nil,
		"status": object{
			"self": "https://" + r.Host + "/rest/api/3/status/10000", "description": "", "iconUrl": "https://" + r.Host + "/", "name": t.Status, "id": "10000",
			"statusCategory": object{"self": "https://" + r.Host + "/rest/api/3/statuscategory/4", "id": 4, "key": category, "colorName": "yellow", "name": category},
		},
		"customfield_10501": nil, "customfield_10502": nil,
	}
	if t.Assignee != "" {
		who := object{"self": "https://" + r.Host + "/rest/api/3/user?accountId=" + t.Assignee, "accountId": t.Assignee, "accountType": "atlassian", "displayName": t.Name, "active": true, "timeZone": "Europe/Berlin"}
		if s.kind == "jira-server" {
			who = object{"self": "https://" + r.Host + "/rest/api/2/user?username=" + t.Assignee, "name": t.Assignee, "key": "JIRAUSER10000", "emailAddress": t.Assignee + "@acme.test", "displayName": t.Name, "active": true, "timeZone": "Europe/Berlin"}
		}
		fields["assignee"] = who
	}
	for name, at := range map[string]time.Time{"customfield_10501": t.From, "customfield_10502": t.Until} {
		if !at.IsZero() {
			fields[name] = at.In(time.FixedZone("", 2*60*60)).Format("2006-01-02T15:04:05.000-0700")
		}
	}
	return fields
}

// serviceNow answers GET /api/now/table/{tableName}.
func (s *System) serviceNow(w http.ResponseWriter, r *http.Request) {
	if s.unauthorized(w, r, object{"error": object{"message": "User Not Authenticated", "detail": "Required to provide Auth information"}, "status": "failure"}) {
		return
	}
	if r.URL.Path != "/api/now/table/"+s.Table {
		answer(w, http.StatusBadRequest, object{"error": object{"message": "Invalid table " + r.URL.Path, "detail": nil}, "status": "failure"})
		return
	}
	q := r.URL.Query()
	number, ok := strings.CutPrefix(q.Get("sysparm_query"), "number=")
	if !ok || strings.Contains(number, "^") {
		// An encoded query with other conditions selects other records, here all of them.
		rows := []object{}
		s.mu.Lock()
		for _, t := range s.tickets {
			rows = append(rows, serviceNowRow(t, q.Get("sysparm_fields")))
		}
		s.mu.Unlock()
		answer(w, http.StatusOK, object{"result": rows})
		return
	}
	rows := []object{}
	if t, ok := s.find(number); ok {
		rows = append(rows, serviceNowRow(t, q.Get("sysparm_fields")))
	}
	w.Header().Set("X-Total-Count", strconv.Itoa(len(rows)))
	answer(w, http.StatusOK, object{"result": rows})
}

var (
	incidentStates = map[string]string{"1": "New", "2": "In Progress", "3": "On Hold", "6": "Resolved", "7": "Closed", "8": "Canceled", "-1": "Implement", "-2": "Scheduled"}
	inactiveStates = []string{"7", "8"}
)

// serviceNowRow returns a record as with sysparm_display_value=all. Display values of times
// are in the zone of the user, values are in UTC.
func serviceNowRow(t Ticket, fields string) object {
	both := func(display, value string) object { return object{"display_value": display, "value": value} }
	at := func(when time.Time) object {
		if when.IsZero() {
			return both("", "")
		}
		return both(when.In(time.FixedZone("", -8*60*60)).Format(time.DateTime), when.UTC().Format(time.DateTime))
	}
	all := object{
		"number": both(t.ID, t.ID), "short_description": both(t.Title, t.Title), "state": both(incidentStates[t.Status], t.Status),
		"active":      both(strconv.FormatBool(!slices.Contains(inactiveStates, t.Status)), strconv.FormatBool(!slices.Contains(inactiveStates, t.Status))),
		"assigned_to": both(t.Name, t.Assignee), "assigned_to.user_name": both(strings.ToLower(t.Name), strings.ToLower(t.Name)),
		"start_date": at(t.From), "end_date": at(t.Until),
	}
	row := object{}
	for name := range strings.SplitSeq(fields, ",") {
		if value, ok := all[name]; ok {
			row[name] = value
		}
	}
	return row
}

// gitHub answers GET /repos/{owner}/{repo}/issues/{issue_number}.
func (s *System) gitHub(w http.ResponseWriter, r *http.Request) {
	const docs = "https://docs.github.com/rest/issues/issues#get-an-issue"
	w.Header().Set("X-GitHub-Media-Type", "github.v3; format=json")
	w.Header().Set("X-RateLimit-Remaining", "4999")
	if s.unauthorized(w, r, object{"message": "Bad credentials", "documentation_url": "https://docs.github.com/rest", "status": "401"}) {
		return
	}
	number, ok := strings.CutPrefix(r.URL.EscapedPath(), "/repos/"+s.Repository+"/issues/")
	t, known := s.find(number)
	switch {
	case !ok || !known:
		answer(w, http.StatusNotFound, object{"message": "Not Found", "documentation_url": docs, "status": "404"})
	case t.Deleted:
		answer(w, http.StatusGone, object{"message": "This issue was deleted", "documentation_url": docs, "status": "410"})
	case t.Moved != "":
		w.Header().Set("Location", fmt.Sprintf("https://%s/repositories/%s/issues/%s", r.Host, t.Moved, number))
		answer(w, http.StatusMovedPermanently, object{"message": "Moved Permanently", "url": w.Header().Get("Location"), "documentation_url": docs})
	default:
		answer(w, http.StatusOK, s.gitHubIssue(r, t))
	}
}

func (s *System) gitHubIssue(r *http.Request, t Ticket) object {
	number, err := strconv.Atoi(t.ID)
	if err != nil {
		panic(err)
	}
	base := "https://" + r.Host + "/repos/" + s.Repository
	assignees := []object{}
	for login := range strings.SplitSeq(t.Assignee, ",") {
		if login != "" {
			assignees = append(assignees, object{"login": login, "id": 583231, "node_id": "MDQ6VXNlcjU4MzIzMQ==", "type": "User", "site_admin": false})
		}
	}
	issue := object{
		"id": 1, "node_id": "MDU6SXNzdWUx", "url": base + "/issues/" + t.ID, "repository_url": base, "html_url": "https://github.com/" + s.Repository + "/issues/" + t.ID,
		"number": number, "state": t.Status, "state_reason": nil, "title": t.Title, "body": "…", "user": object{"login": "octocat", "id": 583231},
		"labels": []object{}, "assignees": assignees, "assignee": nil, "milestone": nil, "locked": false, "comments": 0, "created_at": "2011-04-22T13:33:48Z",
	}
	if len(assignees) > 0 {
		issue["assignee"] = assignees[0]
	}
	if t.Pull {
		issue["pull_request"] = object{"url": base + "/pulls/" + t.ID}
	}
	return issue
}

// Sign returns the signature of a webhook: "sha256=" and the HMAC of the body, as GitHub
// sends it in X-Hub-Signature-256 and Jira in X-Hub-Signature.
func Sign(secret, body string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(body))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}
