package tickets

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// A GitHubConfig describes the issues of one repository.
type GitHubConfig struct {
	Host
	Repository string // "owner/name"
	AssigneeBy string // login or id
}

// gitHub asks "Get an issue": GET /repos/{owner}/{repo}/issues/{issue_number}, version
// 2022-11-28.
type gitHub struct {
	cfg         GitHubConfig
	owner, name string
	client      *client
}

var repositoryForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9._-]{1,100}$`)

// NewGitHub returns the source of a repository's issues.
func NewGitHub(c GitHubConfig) (Source, error) {
	if !repositoryForm.MatchString(c.Repository) {
		return nil, errors.New("write the repository as owner/name")
	}
	client, err := newClient(c.Host)
	if err != nil {
		return nil, err
	}
	owner, name, _ := strings.Cut(c.Repository, "/")
	return &gitHub{c, owner, name, client}, nil
}

type gitHubUser struct {
	Login string `json:"login"`
	ID    int64  `json:"id"`
}

type gitHubIssue struct {
	Number      int64        `json:"number"`
	State       string       `json:"state"` // open or closed
	Title       string       `json:"title"`
	Assignees   []gitHubUser `json:"assignees"`
	PullRequest *struct{}    `json:"pull_request"`
}

// issueNumber is the form of an issue's number. It has one spelling.
var issueNumber = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)

// Fetch implements Source. GitHub's issues have no change window.
func (g *gitHub) Fetch(ctx context.Context, id string) (Answer, error) {
	if !issueNumber.MatchString(id) {
		return Answer{}, ErrNoTicket
	}
	address, err := g.client.path(nil, "repos", g.owner, g.name, "issues", id)
	if err != nil {
		return Answer{}, err
	}
	header := http.Header{"Accept": {"application/vnd.github+json"}, "X-Github-Api-Version": {"2022-11-28"}}
	var issue gitHubIssue
	err = g.client.get(ctx, address, header, &issue)
	var failure *Failure
	switch {
	case errors.As(err, &failure) && failure.Moved: // transferred to another repository
		return Answer{}, ErrNoTicket
	case err != nil:
		return Answer{}, err
	}
	switch {
	case issue.PullRequest != nil: // GitHub's API considers every pull request an issue
		return Answer{}, ErrNoTicket
	case issue.State == "":
		return Answer{}, unexpected("state")
	}
	a := Answer{ID: strconv.FormatInt(issue.Number, 10), Title: issue.Title, Status: issue.State, Open: issue.State == "open"}
	var shown []string
	for _, u := range issue.Assignees[:min(len(issue.Assignees), maxAssignees)] {
		who := u.Login
		if g.cfg.AssigneeBy == "id" {
			who = strconv.FormatInt(u.ID, 10)
		}
		a.Assignees, shown = append(a.Assignees, who), append(shown, u.Login)
	}
	a.Assignee = strings.Join(shown, ", ")
	return a, nil
}
