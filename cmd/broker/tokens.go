package main

import (
	"cmp"
	"context"
	"strings"

	"github.com/spf13/cobra"

	"accessbroker.internal/agent/tokensource"
)

// tokenFlags locate the token with which a workload without a certificate proves its
// identity.
type tokenFlags struct{ tokenFile, tokenFrom, tokenAudience string }

func (f *tokenFlags) addTokens(c *cobra.Command) {
	c.Flags().StringVar(&f.tokenFile, "token-file", "", "a file with your JWT-SVID or OIDC token (or BROKER_TOKEN_FILE)")
	c.Flags().StringVar(&f.tokenFrom, "token-from", "", "get your OIDC token from github-actions, or env:NAME (or BROKER_TOKEN_FROM)")
	c.Flags().StringVar(&f.tokenAudience, "token-audience", "", "the audience of a token from github-actions (or BROKER_TOKEN_AUDIENCE; default: the broker's URL)")
	completes(c, "token-from", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return []string{fromGitHub, fromVariable}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	})
}

// Values of --token-from.
const (
	fromGitHub   = "github-actions"
	fromVariable = "env:" // and a name
)

// tokenProofs are the tokens that prove the identity of a workload.
type tokenProofs struct {
	name   string // where they come from
	source tokensource.Source
	// secret returns the secret part of the proof, from which the key of kept credentials
	// is derived. It is the same for each run of the caller, as long as the token is.
	secret func() ([]byte, error)
}

// secretOf returns the token itself as the secret part.
func secretOf(source tokensource.Source) func() ([]byte, error) {
	return func() ([]byte, error) {
		token, err := source(context.Background())
		return []byte(token), err
	}
}

// tokenProofs returns the tokens of the flags and environment; nil if none are set.
func (a *app) tokenProofs() (*tokenProofs, error) {
	file, fileSet := a.setting(a.client.tokenFile, "--token-file", "BROKER_TOKEN_FILE")
	from, fromSet := a.setting(a.client.tokenFrom, "--token-from", "BROKER_TOKEN_FROM")
	name, isVariable := strings.CutPrefix(from, fromVariable)
	switch {
	case file != "" && from != "":
		return nil, usage("%s and %s are both set: a caller has one proof", fileSet, fromSet)
	case file != "":
		source := tokensource.File(file)
		return &tokenProofs{file, source, secretOf(source)}, nil
	case from == "":
		return nil, nil
	case from == fromGitHub:
		return a.gitHubProofs(), nil
	case !isVariable || name == "" || strings.ContainsAny(name, "= \t\n"):
		return nil, usage("%s must be github-actions, or env:NAME with the name of an environment variable", fromSet)
	}
	source := tokensource.Variable(a.getenv, name)
	return &tokenProofs{from, source, secretOf(source)}, nil
}

// tokenSettings returns the variables that make another process use the same tokens.
func (a *app) tokenSettings() map[string]string {
	file, _ := a.setting(a.client.tokenFile, "", "BROKER_TOKEN_FILE")
	from, _ := a.setting(a.client.tokenFrom, "", "BROKER_TOKEN_FROM")
	audience, _ := a.setting(a.client.tokenAudience, "", "BROKER_TOKEN_AUDIENCE")
	return map[string]string{"BROKER_TOKEN_FILE": absolute(file), "BROKER_TOKEN_FROM": from, "BROKER_TOKEN_AUDIENCE": audience}
}

// setting returns the value of a flag or else of a variable, and the name of the one that
// is set.
func (a *app) setting(flag, flagName, variable string) (value, name string) {
	if flag != "" {
		return flag, flagName
	}
	return a.getenv(variable), variable
}

// gitHubProofs are the tokens that GitHub's runner issues to the job. The request token
// is valid for the whole job.
func (a *app) gitHubProofs() *tokenProofs {
	g := tokensource.GitHub{
		URL: a.getenv(tokensource.GitHubURLVariable), RequestToken: a.getenv(tokensource.GitHubTokenVariable),
		Audience: a.tokenAudience(),
	}
	return &tokenProofs{fromGitHub + " " + g.Audience, g.Token, func() ([]byte, error) { return []byte(g.RequestToken), nil }}
}

func (a *app) tokenAudience() string {
	audience, _ := a.setting(a.client.tokenAudience, "--token-audience", "BROKER_TOKEN_AUDIENCE")
	return cmp.Or(audience, a.server())
}
