// Package pipeline knows the platforms that run pipelines: what a job is called there,
// how it gets a token of its identity, and how a secret is kept out of its log. It reads
// no environment itself; callers pass a function such as os.Getenv.
package pipeline

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"accessbroker.internal/agent/tokensource"
	"accessbroker.internal/internal/visible"
)

// TokenVariable is the environment variable with the token of a job on a platform that
// does not prescribe another one, such as GitLab with its id_tokens.
const TokenVariable = "BROKER_ID_TOKEN"

// A Platform runs jobs of pipelines.
type Platform struct {
	Name string // as people write it

	// Variable has the token of the job; empty: GitHub's runner issues tokens on request.
	Variable string

	// Hint tells a person how the job gets a token.
	Hint string

	// Masks means that the platform removes a value from the log of a job once the job has
	// printed it in a workflow command.
	Masks bool

	marker, value string   // the environment variable that is set on the platform, and to what; an empty value: to anything
	repository    []string // variables, the first one that is set
	job, run      []string
	ref, commit   []string
	by, link      []string
}

// platforms lists the known ones. The names of their variables are in their references
// of predefined variables.
var platforms = []Platform{
	{
		Name: "GitHub Actions", Masks: true, Hint: `add "permissions: id-token: write" to the job`, marker: "GITHUB_ACTIONS", value: "true",
		repository: []string{"GITHUB_REPOSITORY"}, job: []string{"GITHUB_WORKFLOW"}, run: []string{"GITHUB_RUN_ID"},
		ref: []string{"GITHUB_REF"}, commit: []string{"GITHUB_SHA"}, by: []string{"GITHUB_ACTOR"},
	},
	{
		Name: "GitLab", Variable: TokenVariable, Hint: "add id_tokens to the job, with BROKER_ID_TOKEN and the broker's URL as aud", marker: "GITLAB_CI", value: "true",
		repository: []string{"CI_PROJECT_PATH"}, job: []string{"CI_JOB_NAME"}, run: []string{"CI_PIPELINE_ID"},
		ref: []string{"CI_COMMIT_REF_NAME"}, commit: []string{"CI_COMMIT_SHA"}, by: []string{"GITLAB_USER_LOGIN"}, link: []string{"CI_PIPELINE_URL"},
	},
	{
		Name: "CircleCI", Variable: "CIRCLE_OIDC_TOKEN_V2", Hint: "CircleCI issues one to jobs with a context", marker: "CIRCLECI", value: "true",
		repository: []string{"CIRCLE_REPOSITORY_URL"}, job: []string{"CIRCLE_JOB"}, run: []string{"CIRCLE_WORKFLOW_ID"},
		ref: []string{"CIRCLE_BRANCH", "CIRCLE_TAG"}, commit: []string{"CIRCLE_SHA1"}, by: []string{"CIRCLE_USERNAME"},
	},
	{
		Name: "Bitbucket Pipelines", Variable: "BITBUCKET_STEP_OIDC_TOKEN", Hint: `add "oidc: true" to the step`, marker: "BITBUCKET_PIPELINE_UUID",
		repository: []string{"BITBUCKET_REPO_FULL_NAME"}, run: []string{"BITBUCKET_BUILD_NUMBER"},
		ref: []string{"BITBUCKET_BRANCH", "BITBUCKET_TAG"}, commit: []string{"BITBUCKET_COMMIT"}, link: []string{"BITBUCKET_GIT_HTTP_ORIGIN"},
	},
	{
		Name: "Buildkite", Variable: TokenVariable, Hint: "set it to the output of buildkite-agent oidc request-token --audience, with the broker's URL", marker: "BUILDKITE", value: "true",
		repository: []string{"BUILDKITE_REPO"}, job: []string{"BUILDKITE_PIPELINE_SLUG"}, run: []string{"BUILDKITE_BUILD_NUMBER"},
		ref: []string{"BUILDKITE_BRANCH"}, commit: []string{"BUILDKITE_COMMIT"}, by: []string{"BUILDKITE_BUILD_AUTHOR"}, link: []string{"BUILDKITE_BUILD_URL"},
	},
	{
		Name: "Jenkins", Variable: TokenVariable, Hint: "bind an OpenID Connect id token credential to it", marker: "JENKINS_URL",
		repository: []string{"GIT_URL"}, job: []string{"JOB_NAME"}, run: []string{"BUILD_NUMBER"},
		ref: []string{"GIT_BRANCH"}, commit: []string{"GIT_COMMIT"}, link: []string{"BUILD_URL"},
	},
}

// other is a machine that runs no known platform.
var other = Platform{Name: "a pipeline", Variable: TokenVariable, Hint: "set it to an OIDC token of the machine, or use --token-file or SPIFFE_ENDPOINT_SOCKET"}

// Detect returns the platform that runs this process.
func Detect(getenv func(string) string) Platform {
	for _, p := range platforms {
		if set := getenv(p.marker); set != "" && (p.value == "" || set == p.value) {
			return p
		}
	}
	return other
}

// Token returns the source of the job's token for an audience, and its name.
func (p Platform) Token(getenv func(string) string, audience string) (tokensource.Source, string) {
	if p.Variable != "" {
		return tokensource.Variable(getenv, p.Variable), "the variable " + p.Variable
	}
	g := tokensource.GitHub{URL: getenv(tokensource.GitHubURLVariable), RequestToken: getenv(tokensource.GitHubTokenVariable), Audience: audience}
	return g.Token, p.Name
}

// IdentityVariables are the environment variables from which a command of the job could
// get a token of the job's identity.
func (p Platform) IdentityVariables() []string {
	if p.Variable != "" {
		return []string{p.Variable}
	}
	return []string{tokensource.GitHubURLVariable, tokensource.GitHubTokenVariable}
}

const (
	maxField = 200 // bytes of one variable in a description
	maxAll   = 1200
)

// Describe describes the job in one line, for approvers and the log. Names of branches,
// jobs and people come from outside: the author of a pull request chooses them. They are
// cut, and characters that a reader would not see become "?".
//
// The text is the same when the job runs again within its pipeline run, so that a request
// that was approved meanwhile is found by the new attempt.
func (p Platform) Describe(getenv func(string) string) string {
	first := func(names []string) string {
		for _, name := range names {
			if text := tame(getenv(name)); text != "" {
				return text
			}
		}
		return ""
	}
	text := p.Name
	for i, part := range []struct {
		label string
		names []string
	}{{": ", p.repository}, {", ", p.job}, {", run ", p.run}, {", ref ", p.ref}, {", commit ", p.commit}, {", by ", p.by}} {
		if value := first(part.names); value != "" {
			if i > 0 && text == p.Name {
				part.label = ": " + strings.TrimPrefix(part.label, ", ")
			}
			text += part.label + value
		}
	}
	if link := p.runLink(getenv, first); link != "" {
		text += ", " + link
	}
	return cut(text, maxAll)
}

// runLink returns the URL of the pipeline run.
func (p Platform) runLink(getenv func(string) string, first func([]string) string) string {
	if len(p.link) > 0 {
		return first(p.link)
	}
	server, repository, run := tame(getenv("GITHUB_SERVER_URL")), first(p.repository), first(p.run)
	if !p.Masks || server == "" || repository == "" || run == "" {
		return ""
	}
	return server + "/" + repository + "/actions/runs/" + run
}

// tame makes one visible line of a text from outside.
func tame(text string) string {
	before := ' '
	text = strings.Map(func(r rune) rune {
		seen := visible.Rune(r, before)
		before = r
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !seen:
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return cut(strings.TrimSpace(text), maxField)
}

// cut shortens a text to at most n bytes.
func cut(text string, n int) string {
	const mark = "…"
	if len(text) <= n {
		return text
	}
	n -= len(mark)
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + mark
}
