// SPDX-License-Identifier: Apache-2.0
// Two functions that Debian 13's libelf.a calls and does not hold: they belong to elfutils' internal library libeu,
// whose archive is not packaged. libelf keeps in that tree what elf_getdata_rawchunk(3) returned. objtool calls no such
// function, so the tree stays as elf_begin(3) allocated it: zeroed, and empty.
//
// A program that does use raw chunks needs eu_tsearch() too and fails to link, so these cannot hide a tree in use.

void eu_search_tree_init(void *tree);
void eu_search_tree_fini(void *tree, void (*free_node)(void *));

void eu_search_tree_init(void *tree)
{
    (void)tree;
}

void eu_search_tree_fini(void *tree, void (*free_node)(void *))
{
    (void)tree;
    (void)free_node;
}
