package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"accessbroker.internal/api"
)

// completeEntitlement completes the first argument with the entitlements that the
// caller may request. The arguments after it are a command for exec, so it completes
// them with files.
func (a *app) completeEntitlement(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) == 0:
		return a.offered(c, func(o api.Offer) []string { return []string{o.Entitlement} })
	case c.Name() == "exec" || c.Name() == "ci":
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeScope completes the scopes of the entitlement in the first argument.
func (a *app) completeScope(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.offered(c, func(o api.Offer) (scopes []string) {
		for _, s := range o.Scopes {
			if len(args) > 0 && o.Entitlement == args[0] {
				scopes = append(scopes, s.Scope)
			}
		}
		return scopes
	})
}

// offered completes with names from the entitlements that the caller may request. It
// offers none if the broker does not answer within two seconds.
func (a *app) offered(c *cobra.Command, pick func(api.Offer) []string) (names []string, _ cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), 2*time.Second)
	defer cancel()
	_ = a.withClient(ctx, func(ctx context.Context, client *api.Client) error { // after an error there is no completion
		offers, err := client.Entitlements(ctx)
		for _, o := range offers {
			names = append(names, pick(o)...)
		}
		return err
	})
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completes registers the completion of a flag's values.
func completes(c *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the command has no such flag
	}
}

// oneOf completes with a fixed list of words.
func oneOf(words ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
}
