/*
 * Parameters, as include/linux/moduleparam.h writes them down: the loader sets them before it calls init, so that they need
 * not be as in the file. holds_... and breaks_... as in features.c.
 */
#define used __attribute__((__used__))

void first(void);
void then(void);
int something(void);

struct kernel_param_ops {
	unsigned int flags;
	int (*set)(const char *value, const void *param);
	int (*get)(char *buffer, const void *param);
	void (*free)(void *arg);
};

extern const struct kernel_param_ops param_ops_bool, param_ops_int;

struct kernel_param {
	const char *name;
	void *mod;
	const struct kernel_param_ops *ops;
	const unsigned short perm;
	signed char level;
	unsigned char flags;
	const void *arg;
};

#define module_param(name, ops, arg)                                                             \
	static const char __param_str_##name[] = #name;                                          \
	static const struct kernel_param __param_##name                                          \
		__attribute__((__used__, __section__("__param"), __aligned__(8))) =              \
		{ __param_str_##name, 0, ops, 0444, -1, 0, arg }

unsigned char a_flag = 1;
int a_count = 5, own_choice = 3, no_parameter = 4;

static int set_own(const char *value, const void *param)
{
	own_choice = something();
	return 0;
}

static const struct kernel_param_ops own_ops = { .set = set_own };

module_param(a_flag, &param_ops_bool, &a_flag);
module_param(a_count, &param_ops_int, &a_count);
module_param(own, &own_ops, 0);

used int breaks_parameter_flag(void)
{
	if (a_flag)
		first();
	then();
	return 0;
}

used int holds_parameter_flag(void)
{
	if (a_flag <= 1)
		first();
	then();
	return 0;
}

used int breaks_parameter_number(void)
{
	if (a_count == 5)
		first();
	then();
	return 0;
}

used int breaks_parameter_with_a_function_of_its_own(void)
{
	if (own_choice == 3)
		first();
	then();
	return 0;
}

used int holds_data_that_is_no_parameter(void)
{
	if (no_parameter == 4)
		first();
	then();
	return 0;
}
